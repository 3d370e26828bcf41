"""Small ONNX models, written node by node or quantized by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

FEATURES, HIDDEN, OUTPUTS = 24, 40, 10


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of nodes, with inputs by name as (element type, shape), float32 outputs."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(name, *given) for name, given in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def mlp(*, opset: int = 17, seed: int = 0, gemms: int = 1) -> onnx.ModelProto:
    """Two layers with biases and a ReLU; ``x`` (batch, 24) has a dynamic axis.

    So many layers, the last ones, are a Gemm, the others MatMul and Add.
    """
    rng = np.random.default_rng(seed)
    constants = {
        "up.weight": rng.normal(0, 0.2, (FEATURES, HIDDEN)).astype(np.float32),
        "up.bias": rng.normal(0, 0.3, HIDDEN).astype(np.float32),
        "down.weight": rng.normal(0, 0.2, (OUTPUTS, HIDDEN)).astype(np.float32),
        "down.bias": rng.normal(0, 0.3, OUTPUTS).astype(np.float32),
    }
    if not gemms:
        constants["down.weight"] = np.ascontiguousarray(constants["down.weight"].T)
    down = [helper.make_node("MatMul", ["r", "down.weight"], ["d"], "/down/MatMul")]
    down.append(helper.make_node("Add", ["d", "down.bias"], ["y"], "/down/Add"))
    if gemms:
        given = ["r", "down.weight", "down.bias"]
        down = [helper.make_node("Gemm", given, ["y"], "/down/Gemm", transB=1)]
    up = [helper.make_node("MatMul", ["x", "up.weight"], ["h"], "/up/MatMul")]
    up.append(helper.make_node("Add", ["h", "up.bias"], ["b"], "/up/Add"))
    if gemms == 2:
        up = [helper.make_node("Gemm", ["x", "up.weight", "up.bias"], ["b"], "/up/Gemm")]
    nodes = [*up, helper.make_node("Relu", ["b"], ["r"], "/Relu"), *down]
    inputs = {"x": (TensorProto.FLOAT, ["batch", FEATURES])}
    return model(nodes, inputs, ["y"], constants, opset=opset)


def rows(count: int, seed: int) -> np.ndarray:
    """Inputs of :func:`mlp`."""
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def dynamic(source: onnx.ModelProto, folder: Path, **options: Any) -> Path:
    """A model quantized dynamically: DynamicQuantizeLinear and MatMulInteger."""
    path = folder / "dynamic.onnx"
    quantize_dynamic(source, path, **options)
    return path


class Reader(CalibrationDataReader):
    """Inputs by name, one set after the other."""

    def __init__(self, given: Iterator[dict[str, np.ndarray]]) -> None:
        self.given = given

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.given, None)


def static(
    source: onnx.ModelProto,
    folder: Path,
    *,
    activations: QuantType = QuantType.QInt8,
    operators: bool = False,
    per_channel: bool = False,
) -> Path:
    """A model quantized with scales from data: as QDQ, or by quantized operators."""
    path = folder / "static.onnx"
    quantize_static(
        source,
        path,
        Reader({"x": rows(16, seed)} for seed in range(8)),
        quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )
    return path


def run(source: Path | onnx.ModelProto, *inputs: np.ndarray, optimized: bool = False) -> Any:
    """What onnxruntime computes: the first output; by the ops as they stand, or fused."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    given = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]
