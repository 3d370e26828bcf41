"""Legalizations for a host CPU: each op becomes ``call_tir`` to a kernel of this package.

The kernels depend on shapes and attributes only, never on names, and their leading dimensions are
symbolic; so equal layers, prefill and decode share one PrimFunc. Weights and constants pass
through ``call_tir`` s that arrange them in panels: run ``relax.transform.FoldConstant`` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tvm
from tvm import relax, sym, tirx, topi
from tvm.relax.utils import gen_call_tir_inputs

from sparqle_tvm import dialect
from sparqle_tvm.host.attention import AttentionSpec, attention_kernel, quantize_heads_kernel
from sparqle_tvm.host.encode import EncodeSpec, encode_kernel
from sparqle_tvm.host.matmul import matmul_kernel
from sparqle_tvm.host.matmul_tile import INTEGER_LIMITS, MatmulSpec
from sparqle_tvm.host.panels import nibble_panel_kernel, panel_kernel
from sparqle_tvm.host.planes import SplitForm
from sparqle_tvm.host.processor import require_cpu
from sparqle_tvm.host.register_tile import host_tile, static_int
from sparqle_tvm.host.split_dense import DenseKernel, split_dense_kernel
from sparqle_tvm.numerics.attention import HEAD_LEVELS
from sparqle_tvm.numerics.integers import container
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.tirscript import OPAQUE_PATTERN


def legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a call of any op of the dialect; the shape of weights has to be static.

    Raises
    ------
    TargetError
        If TVM compiles for something else than a CPU.
    """
    require_cpu(tvm.target.Target.current(allow_none=True))
    op = dialect.Op.of(call)
    assert op is not None, f"{call.op} is no op of the dialect"
    lowered: relax.Expr = LEGALIZATIONS[type(op)](bb, op, call.ty)
    return lowered


def legalize_encoding(bb: relax.BlockBuilder, op: dialect.Encoder, ty: Any) -> relax.Expr:
    """Lower ``R.sparqle.encode`` and ``quantize_encode``; a row with NaN or Inf gets scale NaN."""
    dims = op.x.ty.shape.values
    spec = EncodeSpec(
        lead=len(dims) - 1,
        columns=static_int(dims[-1], f"K of {op.NAME}"),
        form=_form(op, op.signed),
        group_size=op.group_size,
        qmax=op.qmax,
        factors=op.factors is not None,
        bands=op.bands is not None,
    )
    zeros = _zeros(bb, spec.form, op)
    operands = [each for each in (op.x, zeros, op.factors, op.bands) if each is not None]
    if op.zero_points is None:
        return _call(bb, encode_kernel(spec), op.NAME, operands, ty)
    # The kernel does not copy the zero points, they are a field as they are.
    at = op.fields.index("zero_points")
    made = [field for i, field in enumerate(ty.fields) if i != at]
    planes = bb.emit(_call(bb, encode_kernel(spec), op.NAME, operands, relax.TupleType(made)))
    fields = [bb.emit(relax.TupleGetItem(planes, i)) for i in range(len(made))]
    return relax.Tuple([*fields[:at], op.zero_points, *fields[at:]])


def legalize_balance_rows(_: relax.BlockBuilder, op: dialect.BalanceRows, ty: Any) -> relax.Expr:
    """Lower ``R.sparqle.balance_rows``: by NumPy, as it is done once per encoding at most."""
    numbers = (tirx.IntImm("int64", n) for n in (op.in_features, op.block_rows, op.lanes))
    arguments = relax.Tuple([op.pbm, *numbers])
    return relax.op.call_dps_packed("sparqle.balance_rows", arguments, out_ty=ty)


def legalize_split_dense(
    bb: relax.BlockBuilder, op: dialect.SplitDense | dialect.SplitDenseScaled, ty: Any
) -> relax.Expr:
    """Lower ``R.sparqle.split_dense`` and ``split_dense_scaled``.

    A row order is for accelerators: it changes nothing of the result.
    """
    scaled = op if isinstance(op, dialect.SplitDenseScaled) else None
    described = DenseOp(
        m=1,
        n=static_int(op.weight.ty.shape.values[0], f"N of {op.NAME}"),
        k=op.in_features,
        digit_bits=op.k,
        weight_bits=op.weight_bits,
        group_size=op.group_size,
        has_min=op.has_min,
        output="float32" if scaled else "int32",
    )
    scale_shape = _scale_shape(ty, scaled.act_scale) if scaled else None
    form = _form(op, bool(op.act_signed))
    kernel = DenseKernel(described, form, len(ty.shape.values) - 1, scale_shape, host_tile())
    cols = kernel.tile.cols
    args = [*_encoding_fields(bb, op.encoding)]
    zeros = _zeros(bb, form, op)
    args += [zeros] if zeros is not None else []
    args += [scaled.act_scale] if scaled else []
    if kernel.nibbles:
        dtype, *shape = kernel.weight
        nibbles = nibble_panel_kernel(described.n, described.k, cols)
        packed = relax.TensorType(shape, dtype)
        args.append(bb.emit(_call(bb, nibbles, "nibble_panels", [op.weight], packed)))
    else:
        args.append(_arrange(bb, op.weight, cols, "int8"))
    args += [_arrange(bb, scaled.w_scale, cols, "float32")] if scaled else []
    args.append(_arrange(bb, op.offset, cols))
    if op.has_min:
        args += [_arrange(bb, op.w_min, cols, "float32"), op.group_sums]
    return _call(bb, split_dense_kernel(kernel), op.NAME, args, ty)


def legalize_split_dense_encoded(
    bb: relax.BlockBuilder, op: dialect.SplitDenseEncoded, _: Any
) -> relax.Expr:
    """Lower ``R.sparqle.split_dense_encoded``: the dense, the quantization, then the encoding.

    The quantization is left in the ops of Relax that it is made of in other modules, so its
    floats are theirs, bit for bit.
    """
    ops = relax.op

    def on_grid(x: relax.Expr, scale: relax.Expr, zero: int, low: int, high: int) -> relax.Var:
        q = bb.emit(ops.round(bb.emit(ops.divide(x, scale))))
        if zero:
            q = bb.emit(ops.add(q, relax.const(float(zero), "float32")))
        return bb.emit(ops.clip(q, low, high))

    y = bb.emit(legalize(bb, bb.normalize(op.scaled())))
    if op.mid_scale:
        step = relax.const(op.mid_scale, "float32")
        q = on_grid(y, step, op.mid_zero, op.mid_low, op.mid_high)
        steps = bb.emit(ops.subtract(q, relax.const(float(op.mid_zero), "float32")))
        y = bb.emit(legalize_scale(bb, bb.normalize(ops.multiply(steps, step))))
    if op.bias is not None:
        y = bb.emit(ops.add(y, op.bias))
    clipped = on_grid(y, op.out_scale, op.out_zero, op.out_low, op.out_high)
    digits = op.out_digits
    integers = bb.emit(ops.astype(clipped, container(op.k, digits.signed)))
    encode = dialect.encode(integers, k=op.k, window=op.out_window, zero_point=op.out_zero)
    return legalize(bb, bb.normalize(encode))


def legalize_quantize_heads(
    bb: relax.BlockBuilder, op: dialect.QuantizeHeads, ty: Any
) -> relax.Expr:
    """Lower ``R.sparqle.quantize_heads``."""
    *lead, channels = op.x.ty.shape.values
    kernel = quantize_heads_kernel(len(lead), int(channels), op.levels)
    return _call(bb, kernel, op.NAME, [op.x], ty)


def legalize_attention(bb: relax.BlockBuilder, op: dialect.Attention, ty: Any) -> relax.Expr:
    """Lower ``R.sparqle.attention``; what comes as float32 is quantized first."""

    def stored(x: relax.Expr, levels: int) -> relax.Expr:
        if str(x.ty.dtype) == "int8":
            return x
        quantized = bb.normalize(dialect.quantize_heads(x, levels=levels, label=op.label))
        return bb.emit(legalize(bb, quantized))

    *lead, _, heads, channels = op.q.ty.shape.values
    spec = AttentionSpec(
        batch=bool(lead),
        heads=int(heads),
        kv_heads=int(op.k.ty.shape.values[-2]),
        channels=int(channels),
        value_channels=int(ty.shape.values[-1]),
        scale=op.scale,
        causal=bool(op.causal),
        masked=op.mask is not None,
        tile=host_tile(),
    )
    args = [stored(op.q, HEAD_LEVELS), stored(op.k, op.key_levels), stored(op.v, op.value_levels)]
    args += [op.mask] if op.mask is not None else []
    return _call(bb, attention_kernel(spec), op.NAME, args, ty)


def legalize_matmul(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.matmul``; what :mod:`sparqle_tvm.host.matmul` does not know, TVM's own way."""
    spec = _matmul_spec(call)
    if spec is None:
        return tvm.ir.Op.get("relax.matmul").get_attr("FLegalize")(bb, call)
    return _call(bb, matmul_kernel(spec), "matmul", list(call.args), call.ty)


def legalize_scale(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a multiplication with a scale behind an integer dense to a kernel that stays alone.

    Fused with what follows, LLVM may contract it and an addition (of a bias, of a residual) to one
    operation that rounds once. A split dense has its scales inside, so that its results would
    differ in the last bit.
    """
    kernel, args, ty = gen_call_tir_inputs(topi.multiply, *call.args)
    gv = bb.add_func(kernel.with_attr("op_pattern", OPAQUE_PATTERN), "scale")
    return relax.call_tir(gv, args, ty)


def legalize_dequantize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower ``R.dequantize`` by one scale with the product in a kernel that stays alone."""
    q, scale, zero = call.args
    ops, steps = relax.op, bb.emit(relax.op.astype(q, "int32"))
    steps = bb.emit(ops.subtract(steps, bb.emit(ops.astype(zero, "int32"))))
    wide = bb.emit(ops.astype(steps, "float32"))
    return legalize_scale(bb, bb.normalize(ops.multiply(wide, scale)))


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


def _scale_shape(ty: relax.TensorType, act_scale: relax.Expr) -> tuple[int, ...] | None:
    """None for a scale per row, else the shape of the one scale."""
    shape = list(act_scale.ty.shape.values)
    per_row = [*list(ty.shape.values)[:-1], tirx.IntImm("int64", 1)]
    equal = sym.Analyzer().can_prove_equal
    if len(shape) == len(per_row) and all(map(equal, shape, per_row)):
        return None
    # The op's type inference lets nothing else pass than a single scale.
    assert all(isinstance(d, tirx.IntImm) and int(d) == 1 for d in shape)
    return (1,) * len(shape)


def _form(op: dialect.Encoder | dialect.Dense, signed: bool) -> SplitForm:
    """What the kernels of an op are specialised on; zero points only where they matter."""
    zeros: Literal["", "one", "row"] = ""
    sums = isinstance(op, dialect.Encoder) and op.group_size > 0
    given = op.zero_points_type
    if WINDOWS[op.window].centred or sums:
        if given is not None:
            zeros = "one" if dialect.is_single(given) else "row"
        elif op.zero_point:
            zeros = "one"
    return SplitForm(op.window, op.k, signed, zeros)


def _zeros(
    bb: relax.BlockBuilder, form: SplitForm, op: dialect.Encoder | dialect.Dense
) -> relax.Expr | None:
    """The zero points as a kernel of that form takes them, constant ones as a tensor, too."""
    if not form.zeros:
        return None
    if op.zero_points is None:
        return relax.const(np.array([op.zero_point], form.integer))
    given = bb.emit(op.zero_points)
    return bb.emit(relax.op.reshape(given, (1,))) if form.zeros == "one" else given


def _encoding_fields(bb: relax.BlockBuilder, encoding: relax.Expr) -> list[relax.Expr]:
    """The planes of an encoding's tuple."""
    if isinstance(encoding, relax.Tuple):
        return list(encoding.fields[: len(dialect.PLANES)])
    return [bb.emit(dialect.plane(encoding, name)) for name in dialect.PLANES]


def _arrange(
    bb: relax.BlockBuilder, source: relax.Expr, cols: int, dtype: str | None = None
) -> relax.Expr:
    """Weights or constants (N, ..) in panels of `cols` channels, as `dtype` if that is another."""
    shape = tuple(static_int(d, "the shape of weights") for d in source.ty.shape.values)
    dtype = dtype or str(source.ty.dtype)
    kernel = panel_kernel(shape, str(source.ty.dtype), dtype, cols)
    panels = relax.TensorType((-(-shape[0] // cols), *shape[1:], cols), dtype)
    return bb.emit(_call(bb, kernel, "panels", [source], panels))


def _call(
    bb: relax.BlockBuilder, kernel: tirx.PrimFunc, name: str, args: list[Any], ty: Any
) -> relax.Expr:
    out = list(ty.fields) if isinstance(ty, relax.TupleType) else ty
    return relax.call_tir(bb.add_func(kernel, name), relax.Tuple(args), out)


LEGALIZATIONS: dict[type[dialect.Op], Callable[[relax.BlockBuilder, Any, Any], relax.Expr]] = {
    dialect.Encode: legalize_encoding,
    dialect.QuantizeEncode: legalize_encoding,
    dialect.BalanceRows: legalize_balance_rows,
    dialect.SplitDense: legalize_split_dense,
    dialect.SplitDenseScaled: legalize_split_dense,
    dialect.SplitDenseEncoded: legalize_split_dense_encoded,
    dialect.QuantizeHeads: legalize_quantize_heads,
    dialect.Attention: legalize_attention,
}

HOST_LEGALIZE_MAP: dict[str, Any] = {"relax.matmul": legalize_matmul}
"""For ``relax.transform.LegalizeOps(customize_legalize_map=...)``; our own ops need no entry."""
