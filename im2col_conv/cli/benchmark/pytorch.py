"""PyTorch as a contestant."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from im2col_conv.cli.benchmark.data import Array, Data, Runs
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["set_up"]

_MEMORY_FORMATS = {2: "channels_last", 3: "channels_last_3d"}


def set_up(layer: Layer, data: Data, threads: int) -> Runs:
    """Return the functional convolution, and the operator by which autograd goes back."""
    torch: Any = import_module("torch")
    last = layer.layout == "channels_last"
    if not 1 <= layer.axes <= 3 or (last and layer.axes not in _MEMORY_FORMATS):
        return Runs()
    torch.set_num_threads(threads)
    x, w, b, dout = (torch.from_numpy(array) for array in data)
    if last:
        # Its own channels last: axes are named as for channels first, memory is in our order.
        x, dout = x.movedim(-1, 1), dout.movedim(-1, 1)
        w = w.contiguous(memory_format=getattr(torch, _MEMORY_FORMATS[layer.axes]))
    conv = getattr(torch.nn.functional, f"conv{layer.axes}d")
    geometry = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    zeros, ones = (0,) * layer.axes, (1,) * layer.axes

    # The operator that autograd calls, without autograd's own costs.
    def backward() -> tuple[Any, ...]:
        return tuple(
            torch.ops.aten.convolution_backward(
                dout, x, w, [layer.filters], layer.stride, layer.padding, ones, False, zeros,
                layer.groups, (True, True, True),
            )
        )  # fmt: skip

    return Runs(lambda: conv(x, w, b, **geometry), backward, _channels_last if last else np.asarray)


def _channels_last(images: Any) -> Array:
    return np.moveaxis(np.asarray(images), 1, -1)
