"""JAX, compiled by XLA, as a contestant."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from im2col_conv.cli.benchmark.data import Data, Runs
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["set_up"]

_AXES = "XYZ"


def set_up(layer: Layer, data: Data, threads: int) -> Runs:
    """Return both passes, to be compiled when they are first called."""
    # JAX has no setting for its threads: it takes every processor that the process may use.
    if threads != _processors() or layer.axes > len(_AXES):
        return Runs()
    jax: Any = import_module("jax")
    jax.config.update("jax_enable_x64", layer.dtype == "float64")
    x, w, b, dout = (jax.numpy.asarray(array) for array in data)
    conv = _convolution(layer, jax)
    forward = jax.jit(conv)
    backward = jax.jit(lambda x, w, b, dout: jax.vjp(conv, x, w, b)[1](dout))
    return Runs(
        lambda: forward(x, w, b).block_until_ready(),
        lambda: tuple(jax.block_until_ready(backward(x, w, b, dout))),
    )


def _convolution(layer: Layer, jax: Any) -> Any:
    spatial = _AXES[: layer.axes]
    last = layer.layout == "channels_last"
    images = f"N{spatial}C" if last else f"NC{spatial}"
    per_filter = (-1,) if last else (-1, *(1,) * layer.axes)

    def conv(x: Any, w: Any, b: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x,
            w,
            layer.stride,
            [(padding, padding) for padding in layer.padding],
            dimension_numbers=(images, f"OI{spatial}", images),
            feature_group_count=layer.groups,
        )
        return y + b.reshape(per_filter)

    return conv


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
