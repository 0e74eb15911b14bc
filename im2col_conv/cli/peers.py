"""Who runs in the benchmark: this library, the classic lowering, and other libraries.

A peer sets itself up for one layer, its data converted and its kernels compiled, and hands back
what is timed. Other libraries are imported when the benchmark runs, never before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from numpy.typing import NDArray

import im2col_conv as ic
from im2col_conv.cli import classic
from im2col_conv.cli.layers import Layer

__all__ = ["PEERS", "Data", "Peer", "Runs"]

Array = NDArray[Any]


class Data(NamedTuple):
    """The arrays of one layer, float32."""

    x: Array
    w: Array
    b: Array
    dout: Array


class Runs(NamedTuple):
    """What is timed; ``backward`` gives dx, dw and db. Each peer gives its own kind of array."""

    forward: Callable[[], Any]
    backward: Callable[[], tuple[Any, ...]] | None


@dataclass(frozen=True)
class Peer:
    """One contestant.

    Attributes
    ----------
    name : str
    set_up : callable
        From a layer, its data and a number of threads to what is timed.
    packages : tuple of str
        What pip installs for it, under the names that they are imported by.
    """

    name: str
    set_up: Callable[[Layer, Data, int], Runs]
    packages: tuple[str, ...] = ()

    def is_installed(self) -> bool:
        """Say whether all its packages can be imported."""
        try:
            for package in self.packages:
                import_module(package)
        except ImportError:
            return False
        return True

    @property
    def pip_command(self) -> str:
        """The line that installs it."""
        return f"python -m pip install {' '.join(self.packages)}"


def _im2col_conv(layer: Layer, data: Data, _: int) -> Runs:
    x, w, b, dout = data
    geometry: dict[str, Any] = {
        "stride": layer.stride,
        "padding": layer.padding,
        "groups": layer.groups,
    }
    return Runs(
        lambda: ic.conv(x, w, b, **geometry),
        lambda: tuple(ic.conv_grads(dout, x, w, **geometry)),
    )


def _classic(layer: Layer, data: Data, _: int) -> Runs:
    x, w, b, dout = data
    return Runs(
        lambda: classic.forward(layer, x, w, b),
        lambda: classic.backward(layer, x, w, dout),
    )


def _pytorch(layer: Layer, data: Data, threads: int) -> Runs:
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    x, w, b, dout = (torch.from_numpy(array) for array in data)
    stride, padding = (layer.stride,) * 2, (layer.padding,) * 2

    # The operator that autograd calls, without autograd's own costs.
    def backward() -> tuple[Any, ...]:
        return tuple(
            torch.ops.aten.convolution_backward(
                dout, x, w, [layer.filters], stride, padding, (1, 1), False, (0, 0),
                layer.groups, (True, True, True),
            )
        )  # fmt: skip

    return Runs(
        lambda: torch.nn.functional.conv2d(
            x, w, b, stride=stride, padding=padding, groups=layer.groups
        ),
        backward,
    )


def _onnxruntime(layer: Layer, data: Data, threads: int) -> Runs:
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(
        _onnx_model(layer, data), options, providers=["CPUExecutionProvider"]
    )
    return Runs(lambda: session.run(None, {"x": data.x})[0], None)


def _onnx_model(layer: Layer, data: Data) -> bytes:
    """Return a model of one Conv node that holds its weights, as deployed models do."""
    onnx: Any = import_module("onnx")
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["y"],
        strides=[layer.stride] * 2,
        pads=[layer.padding] * 4,
        group=layer.groups,
    )
    graph = helper.make_graph(
        [node],
        layer.name,
        [helper.make_tensor_value_info("x", numbers, data.x.shape)],
        [helper.make_tensor_value_info("y", numbers, data.dout.shape)],
        [onnx.numpy_helper.from_array(data.w, "w"), onnx.numpy_helper.from_array(data.b, "b")],
    )
    # Old versions of format and operators, which old and new runtimes read alike.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    serialized: bytes = model.SerializeToString()
    return serialized


def _jax(layer: Layer, data: Data, _: int) -> Runs:
    # JAX has no setting for its threads: it takes every processor that the process may use.
    jax: Any = import_module("jax")
    x, w, b, dout = (jax.numpy.asarray(array) for array in data)

    def conv(x: Any, w: Any, b: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x,
            w,
            (layer.stride,) * 2,
            [(layer.padding,) * 2] * 2,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=layer.groups,
        )
        return y + b[:, None, None]

    forward = jax.jit(conv)
    backward = jax.jit(lambda x, w, b, dout: jax.vjp(conv, x, w, b)[1](dout))
    return Runs(
        lambda: forward(x, w, b).block_until_ready(),
        lambda: tuple(jax.block_until_ready(backward(x, w, b, dout))),
    )


PEERS = (
    Peer("im2col_conv", _im2col_conv),
    Peer("classic", _classic),
    Peer("pytorch", _pytorch, ("torch",)),
    Peer("onnxruntime", _onnxruntime, ("onnxruntime", "onnx")),
    Peer("jax", _jax, ("jax",)),
)
"""All contestants; the first is this library, the second needs NumPy alone."""
