"""Legalizations for a host CPU: each op becomes ``call_tir`` to a kernel of this package.

The kernels depend on shapes and attributes only, never on names, and their leading dimensions are
symbolic; so equal layers, prefill and decode share one PrimFunc. Weights and constants pass
through ``call_tir`` s that arrange them in panels: run ``relax.transform.FoldConstant`` afterwards.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, sym, tirx

from sparqle_tvm import dialect
from sparqle_tvm.host.encode import EncodeSpec, encode_kernel
from sparqle_tvm.host.matmul import matmul_kernel
from sparqle_tvm.host.matmul_tile import INTEGER_LIMITS, MatmulSpec
from sparqle_tvm.host.panels import panel_matrix, panel_vector
from sparqle_tvm.host.register_tile import host_tile, static_int
from sparqle_tvm.host.split_dense import DenseKernel, split_dense_kernel
from sparqle_tvm.target.op import DenseOp, Output


def legalize_encode(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.sparqle.encode``."""
    return _legalize_encoding(bb, call, qmax=0)


def legalize_quantize_encode(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.sparqle.quantize_encode``; a row with NaN or Inf gets the scale NaN."""
    return _legalize_encoding(bb, call, qmax=int(call.attrs["qmax"]))


def legalize_balance_rows(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.sparqle.balance_rows``: by NumPy, as it is done once per encoding at most."""
    numbers = (
        tirx.IntImm("int64", int(call.attrs[name]))
        for name in ("in_features", "block_rows", "lanes")
    )
    arguments = relax.Tuple([call.args[0], *numbers])
    return relax.op.call_dps_packed("sparqle.balance_rows", arguments, out_ty=call.ty)


def legalize_split_dense(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.sparqle.split_dense``; the weight's shape has to be static."""
    encoding, weight, bias = call.args
    spec = _dense_kernel(call, weight)
    cols = spec.tile.cols
    args = [
        *_encoding_fields(bb, encoding),
        _arrange_matrix(bb, weight, "int8", cols),
        _arrange_vector(bb, bias, cols),
    ]
    return _call(bb, split_dense_kernel(spec), "split_dense", args, call.ty)


def legalize_split_dense_scaled(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.sparqle.split_dense_scaled``; the weight's shape has to be static."""
    encoding, act_scale, weight, w_scale, offset = call.args[:5]
    # A row order behind the others is for accelerators: it changes nothing of the result.
    group = call.args[5:7] if len(call.args) >= 7 else []
    spec = _dense_kernel(
        call,
        weight,
        _scale_shape(call, act_scale),
        group_size=int(call.attrs["group_size"]),
        has_min=len(group) > 0,
        output="float32",
    )
    cols = spec.tile.cols
    scale = (
        _arrange_matrix(bb, w_scale, "float32", cols)
        if spec.op.group_size
        else _arrange_vector(bb, w_scale, cols)
    )
    args = [
        *_encoding_fields(bb, encoding),
        act_scale,
        _arrange_matrix(bb, weight, "int8", cols),
        scale,
        _arrange_vector(bb, offset, cols),
    ]
    if len(group) > 0:
        args += [_arrange_matrix(bb, group[0], "float32", cols), group[1]]
    return _call(bb, split_dense_kernel(spec), "split_dense_scaled", args, call.ty)


def legalize_split_dense_encoded(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.sparqle.split_dense_encoded``: the dense, the quantization, then the encoding.

    The quantization is left in the ops of Relax that it is made of in other modules, so its
    floats are theirs, bit for bit.
    """
    attrs, op = dialect.attributes(call), relax.op
    dense_attrs = ("k", "window", "in_features", "group_size", "weight_bits", "label")
    dense = dialect.split_dense_scaled(
        *call.args[:5], *call.args[6:], **{name: attrs[name] for name in dense_attrs}
    )
    y = bb.emit(legalize_split_dense_scaled(bb, bb.normalize(dense)))
    q = bb.emit(op.round(bb.emit(op.divide(y, call.args[5]))))
    if attrs["out_zero"]:
        q = bb.emit(op.add(q, relax.const(float(attrs["out_zero"]), "float32")))
    clipped = bb.emit(op.clip(q, attrs["out_low"], attrs["out_high"]))
    container = "int16" if attrs["k"] == 8 else "int8"
    encoding = dialect.encode(
        bb.emit(op.astype(clipped, container)), k=attrs["k"], window=attrs["out_window"]
    )
    return legalize_encode(bb, bb.normalize(encoding))


def legalize_matmul(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.matmul``; what :mod:`sparqle_tvm.host.matmul` does not know, TVM's own way."""
    spec = _matmul_spec(call)
    if spec is None:
        return tvm.ir.Op.get("relax.matmul").get_attr("FLegalize")(bb, call)
    return _call(bb, matmul_kernel(spec), "matmul", list(call.args), call.ty)


def has_matmul_kernel(call: relax.Call) -> bool:
    """Whether there is a kernel for the types and shapes of this ``R.matmul``."""
    return _matmul_spec(call) is not None


def _matmul_spec(call: relax.Call) -> MatmulSpec | None:
    """The kernel's parameters, None if there is no kernel for these types and shapes."""
    types = [call.args[0].ty, call.args[1].ty, call.ty]
    if any(ty.shape is None or not isinstance(ty.shape, relax.ShapeExpr) for ty in types):
        return None
    a_dtype, b_dtype, out_dtype = (str(ty.dtype) for ty in types)
    integer = a_dtype in INTEGER_LIMITS and b_dtype in INTEGER_LIMITS and out_dtype == "int32"
    floating = a_dtype == b_dtype == out_dtype and out_dtype in ("float32", "float64")
    a, b, _ = (list(ty.shape.values) for ty in types)
    if not (integer or floating) or min(len(a), len(b)) < 2:
        return None
    flags = _batch_flags(a[:-2], b[:-2])
    if flags is None or not sym.Analyzer().can_prove_equal(a[-1], b[-2]):
        return None
    columns, channels = (int(d) if isinstance(d, tirx.IntImm) else None for d in (a[-1], b[-1]))
    return MatmulSpec(*flags, columns, channels, a_dtype, b_dtype, out_dtype, host_tile())


def _batch_flags(a: list[Any], b: list[Any]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """How each operand takes part in the batch dimensions; None if that is not known."""
    equal, count = sym.Analyzer().can_prove_equal, max(len(a), len(b))
    pairs: list[tuple[str, str]] = []
    for x, y in zip([None] * (count - len(a)) + a, [None] * (count - len(b)) + b, strict=True):
        if x is None or y is None:
            pairs.append(("" if x is None else "d", "" if y is None else "d"))
        elif equal(x, y):
            pairs.append(("d", "d"))
        elif equal(x, 1) or equal(y, 1):
            pairs.append(("1", "d") if equal(x, 1) else ("d", "1"))
        else:
            return None
    return tuple(x for x, _ in pairs), tuple(y for _, y in pairs)


def _legalize_encoding(bb: relax.BlockBuilder, call: relax.Call, qmax: int) -> relax.Expr:
    dims = call.args[0].ty.shape.values
    spec = EncodeSpec(
        lead=len(dims) - 1,
        columns=static_int(dims[-1], f"K of {call.op.name}"),
        k=int(call.attrs["k"]),
        signed=str(call.attrs["window"]) == "signed",
        group_size=int(call.attrs["group_size"]),
        qmax=qmax,
        factors=len(call.args) > 1,
        bands=len(call.args) > 2,
    )
    name = "quantize_encode" if qmax else "encode"
    return _call(bb, encode_kernel(spec), name, list(call.args), call.ty)


def _dense_kernel(
    call: relax.Call,
    weight: relax.Expr,
    scale_shape: tuple[int, ...] | None = None,
    *,
    group_size: int = 0,
    has_min: bool = False,
    output: Output = "int32",
) -> DenseKernel:
    op = DenseOp(
        m=1,
        n=static_int(weight.ty.shape.values[0], f"N of {call.op.name}"),
        k=int(call.attrs["in_features"]),
        digit_bits=int(call.attrs["k"]),
        weight_bits=int(call.attrs["weight_bits"]),
        group_size=group_size,
        has_min=has_min,
        output=output,
    )
    return DenseKernel(op, len(call.ty.shape.values) - 1, scale_shape, host_tile())


def _scale_shape(call: relax.Call, act_scale: relax.Expr) -> tuple[int, ...] | None:
    """None for a scale per row, else the shape of the one scale."""
    shape = list(act_scale.ty.shape.values)
    per_row = [*list(call.ty.shape.values)[:-1], tirx.IntImm("int64", 1)]
    equal = sym.Analyzer().can_prove_equal
    if len(shape) == len(per_row) and all(map(equal, shape, per_row)):
        return None
    # The op's type inference lets nothing else pass than a single scale.
    assert all(isinstance(d, tirx.IntImm) and int(d) == 1 for d in shape)
    return (1,) * len(shape)


def _encoding_fields(bb: relax.BlockBuilder, encoding: relax.Expr) -> list[relax.Expr]:
    """``lsb``, ``pbm``, ``msb`` and ``row_ptr`` of an encoding's tuple."""
    if isinstance(encoding, relax.Tuple):
        return list(encoding.fields[:4])
    return [bb.emit(relax.TupleGetItem(encoding, i)) for i in range(4)]


def _arrange_matrix(
    bb: relax.BlockBuilder, source: relax.Expr, dtype: str, cols: int
) -> relax.Expr:
    channels, inner = (static_int(d, "a weight's shape") for d in source.ty.shape.values)
    kernel = panel_matrix(channels, inner, str(source.ty.dtype), dtype, cols)
    panels = relax.TensorType((-(-channels // cols), inner, cols), dtype)
    return bb.emit(_call(bb, kernel, "panel_matrix", [source], panels))


def _arrange_vector(bb: relax.BlockBuilder, source: relax.Expr, cols: int) -> relax.Expr:
    channels, dtype = static_int(source.ty.shape.values[0], "N of a constant"), source.ty.dtype
    kernel = panel_vector(channels, str(dtype), cols)
    panels = relax.TensorType((-(-channels // cols), cols), dtype)
    return bb.emit(_call(bb, kernel, "panel_vector", [source], panels))


def _call(
    bb: relax.BlockBuilder, kernel: tirx.PrimFunc, name: str, args: list[Any], ty: Any
) -> relax.Expr:
    out = list(ty.fields) if isinstance(ty, relax.TupleType) else ty
    return relax.call_tir(bb.add_func(kernel, name), relax.Tuple(args), out)


HOST_LEGALIZE_MAP: dict[str, Any] = {"relax.matmul": legalize_matmul}
"""For ``relax.transform.LegalizeOps(customize_legalize_map=...)``; our own ops need no entry."""
