"""Import an ONNX model: quantized dynamically, statically (QDQ), or by ops of onnxruntime."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from sparqle_tvm.errors import (
    InvalidArgumentError,
    MissingExtraError,
    SparqleError,
    UnsupportedModelError,
)
from sparqle_tvm.frontend.graph_model import GraphModel, graph_input, reason_of

if TYPE_CHECKING:
    import onnx


def from_onnx(
    source: str | PathLike[str] | onnx.ModelProto, *, sizes: Mapping[str, int] | None = None
) -> GraphModel:
    """Import a model of opset 13 to 21; integer weights stay the integers that they are.

    Dynamic quantization (DynamicQuantizeLinear and MatMulInteger), static QDQ, and the quantized
    ops of onnxruntime (QLinearMatMul, QGemm, QLinearAdd, MatMulIntegerToFloat and others) are
    taken; other ops as far as TVM imports them.

    Parameters
    ----------
    source : path or onnx.ModelProto
        The model; tensors that lie in files of their own are read from beside it.
    sizes : mapping of str to int, optional
        Sizes of dynamic axes, by their names; the others stay dynamic.

    Raises
    ------
    ModelFileError
        If the file is missing or damaged, or its graph is not valid.
    UnsupportedModelError
        If the opset, or a node, is not supported; the message names the node.
    InvalidArgumentError
        If no axis has a name that is given a size.
    MissingExtraError
        If the package onnx is not installed.
    """
    try:
        from sparqle_tvm.frontend.onnx_graph import load_model, rewritten
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX models need {error.name}, which is not installed: "
            "pip install 'sparqle-tvm[onnx]'"
        ) from error
    model, name = load_model(source)
    importer = _importer()
    # TVM prints what it does not know, and warns of names and shapes that are dynamic.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, version = rewritten(model, sizes or {})
            mod = importer.from_onnx(model.graph, version)
        except InvalidArgumentError:
            raise
        except SparqleError as error:
            raise type(error)(f"{name}: {error}") from error
        except Exception as error:  # of TVM, of protobuf, of NumPy: whatever it stumbles over
            raise UnsupportedModelError(f"{name}: {reason_of(error)}") from error
    known = {each.name for each in model.graph.initializer}
    names = [each.name for each in model.graph.input if each.name not in known]
    params = mod["main"].params
    return GraphModel(
        mod=mod,
        name=name if model.graph.name in _NO_NAMES else model.graph.name,
        inputs=tuple(graph_input(*each) for each in zip(names, params, strict=True)),
        outputs=tuple(each.name for each in model.graph.output),
    )


_NO_NAMES = ("", "main", "main_graph", "torch_jit", "torch-jit-export")
"""What exporters call any graph."""


def label_of(name: str, op: str) -> str:
    """What reports call the product of a node: ``/layer.0/q/MatMul_quant`` is ``layer_0_q``."""
    # The quantizer of onnxruntime adds to the names of nodes.
    own = name.removesuffix("_quant").replace("/Gemm_MatMul", "/Gemm")
    parts = [part for part in own.split("/") if part]
    if len(parts) > 1 and parts[-1] in ("MatMul", "Gemm", op):
        parts.pop()
    return re.sub(r"\W", "_", "_".join(parts)) or op


PRODUCTS = frozenset({"MatMul", "MatMulInteger", "MatMulInteger16"})
"""Ops that reports name after their node."""


def _importer() -> Any:
    """TVM's importer of graphs, with some ops of our own, names of products, and typed errors."""
    from tvm.relax.frontend.onnx import onnx_frontend

    class Importer(onnx_frontend.ONNXGraphImporter):
        def _convert_operator(
            self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int
        ) -> relax.Expr:
            name = str(attrs["tvm_custom"]["name"])
            try:
                own = OWN.get(op_name)
                found = None if own is None else own(self.bb, list(inputs), attrs)
                if found is None:
                    found = super()._convert_operator(op_name, inputs, attrs, opset)
            except Exception as error:  # whatever TVM makes of it
                raise UnsupportedModelError(
                    f"node {name!r} ({op_name}) is not supported: {reason_of(error)}"
                ) from error
            if op_name in PRODUCTS and isinstance(found, relax.Call):
                return self.bb.emit(found, label_of(name, op_name))
            return found

    return Importer({}, {})


def _range(bb: relax.BlockBuilder, inputs: Sequence[Any], _: Any) -> relax.Expr | None:
    """A range up to an extent of a shape: its length is known, which TVM's own forgets."""
    numbers = [_number(each) for each in inputs[:3]]
    if any(number is None for number in numbers) or all(isinstance(n, int) for n in numbers):
        return None
    return bb.normalize(relax.op.arange(*numbers, "int64"))


def _number(expr: Any) -> Any | None:
    """An int64 number, or an expression of extents; None for anything else."""
    if isinstance(expr, tvm.ir.GenericConst):
        value = expr.value.numpy()
        return int(value.reshape(-1)[0]) if value.dtype == np.int64 and value.size == 1 else None
    return expr if tvm.ir.is_prim_expr(expr) and str(expr.ty) == "int64" else None


def _cast(_: relax.BlockBuilder, inputs: Sequence[Any], attrs: Any) -> relax.Expr | None:
    """A known extent as a tensor of another type: TVM's own cast leaves a number."""
    from tvm.relax.frontend.onnx.onnx_frontend import get_type

    extent, dtype = inputs[0], get_type(attrs["to"])
    if not isinstance(extent, tvm.tirx.IntImm) or dtype == "int64":
        return None
    return relax.const(int(extent), dtype)


def _dynamic_quantize(bb: relax.BlockBuilder, inputs: Sequence[Any], _: Any) -> relax.Expr:
    """``DynamicQuantizeLinear`` as onnxruntime does it: the scale of a tensor of zeros is 1."""
    op, x = relax.op, inputs[0]
    zero, levels = relax.const(0.0, "float32"), relax.const(255.0, "float32")
    high = bb.emit(op.maximum(zero, op.max(x)))
    low = bb.emit(op.minimum(zero, op.min(x)))
    step = bb.emit(op.divide(op.subtract(high, low), levels))
    scale = bb.emit(op.where(op.equal(high, low), relax.const(1.0, "float32"), step), "scale")
    shifted = op.round(op.subtract(zero, op.divide(low, scale)))
    zero_point = bb.emit(op.astype(op.clip(shifted, 0, 255), "uint8"), "zero_point")
    q = bb.emit(op.quantize(x, scale, zero_point, axis=0, out_dtype="uint8"), "q")
    return relax.Tuple([q, scale, zero_point])


# Ops that TVM's importer takes in another sense, or makes less of.
OWN: Mapping[str, Callable[[relax.BlockBuilder, Sequence[Any], Any], relax.Expr | None]] = {
    "Cast": _cast,
    "Range": _range,
    "DynamicQuantizeLinear": _dynamic_quantize,
}
