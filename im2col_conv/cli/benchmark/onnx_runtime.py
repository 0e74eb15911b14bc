"""ONNX Runtime as a contestant: forward, channels first, float32."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from im2col_conv.cli.benchmark.data import Data, Runs
from im2col_conv.cli.benchmark.layers import Layer

__all__ = ["set_up"]


def set_up(layer: Layer, data: Data, threads: int) -> Runs:
    """Return a session that runs a model of one node."""
    if layer.layout != "channels_first" or layer.dtype != "float32":
        return Runs()
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(
        _model(layer, data), options, providers=["CPUExecutionProvider"]
    )
    return Runs(lambda: session.run(None, {"x": data.x})[0])


def _model(layer: Layer, data: Data) -> bytes:
    """Return a model of one Conv node that holds its weights, as deployed models do."""
    onnx: Any = import_module("onnx")
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["y"],
        strides=layer.stride,
        pads=layer.padding * 2,
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
