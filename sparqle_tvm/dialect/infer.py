"""Type inference of the ``R.sparqle`` ops, symbolic shapes included."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, sym

from sparqle_tvm.dialect import ops
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.attention import SCALE_BYTES
from sparqle_tvm.numerics.integers import CONTAINER, bounds, container
from sparqle_tvm.numerics.kv_cache import HeadStorage
from sparqle_tvm.numerics.requantize import GRID_LIMIT
from sparqle_tvm.numerics.window import WINDOWS, largest_integer


def _shape(op: ops.Op, operand: str) -> list[Any]:
    """The shape of a tensor operand, whose rank has to be known and at least 1."""
    ty, what = getattr(op, operand).ty, op.text(operand)
    if not isinstance(ty, relax.TensorType):
        raise op.error(f"{what} has to be a tensor, not {ty}")
    if ty.shape is None:
        raise op.error(f"the shape of {what} is not known; add a R.match_cast before it")
    dims = list(ty.shape.values)
    if not dims:
        raise op.error(f"{what} is a scalar, a tensor (.., K) is needed")
    return dims


def _text(dims: list[Any]) -> str:
    """A shape as people write it: ``[2, n]``."""
    shown = [str(int(d)) if isinstance(d, int) or hasattr(d, "value") else str(d) for d in dims]
    return f"[{', '.join(shown)}]"


def _static(op: ops.Op, dim: Any, what: str) -> int:
    """A dimension that has to be a number at compile time."""
    if isinstance(dim, int) or hasattr(dim, "value"):
        return int(dim)
    raise op.error(f"{what} = {dim} is symbolic; bind it with BindSymbolicVars")


def _dtype(op: ops.Op, operand: str, wanted: str) -> None:
    ty = getattr(op, operand).ty
    found = str(ty.dtype) if isinstance(ty, relax.TensorType) else f"no tensor but {ty}"
    if found != wanted:
        raise op.error(f"{op.text(operand)} is {found}, {wanted} is needed; insert R.astype")


def _expect(op: ops.Op, operand: str, shape: list[Any], dtype: str) -> None:
    """Hold a tensor operand to a dtype and a (maybe symbolic) shape."""
    _dtype(op, operand, dtype)
    found = _shape(op, operand)
    analyzer = sym.Analyzer()
    if len(found) != len(shape) or not all(
        analyzer.can_prove_equal(a, b) for a, b in zip(found, shape, strict=True)
    ):
        raise op.error(f"{op.text(operand)} has shape {_text(found)}, {_text(shape)} is needed")


def _require(op: ops.Op, attribute: str, allowed: Callable[[int], bool], rule: str) -> int:
    """An integer attribute, which has to keep a rule."""
    value: int = getattr(op, attribute)
    if not allowed(value):
        raise op.error(f"attribute {attribute}={value} is not {rule}")
    return value


def _require_window(op: ops.Op, attribute: str) -> str:
    window: str = getattr(op, attribute)
    if window not in WINDOWS:
        known = " nor ".join(f'"{name}"' for name in WINDOWS)
        raise op.error(f'attribute {attribute}="{window}" is neither {known}')
    return window


def _digits(op: ops.Encoder | ops.Dense) -> int:
    """k, after a look at the window."""
    _require_window(op, "window")
    return _require(op, "k", lambda k: k in CONTAINER, "2, 4 or 8")


def _tensor(shape: list[Any], dtype: str) -> relax.TensorType:
    return relax.TensorType(relax.ShapeExpr(shape), dtype)


def _plane_types(lead: list[Any], columns: int, k: int) -> list[relax.TensorType]:
    """Types of ``lsb``, ``pbm``, ``msb`` and ``row_ptr`` of (.., columns) activations."""
    lsb_bytes = -(-columns * k // 8)
    return [
        _tensor([*lead, lsb_bytes], "uint8"),
        _tensor([*lead, -(-columns // 8)], "uint8"),
        _tensor([_product([*lead, lsb_bytes])], "uint8"),
        _tensor([_product(lead, plus=1)], "int32"),
    ]


def _product(dims: list[Any], *, plus: int = 0) -> Any:
    """The product of (maybe symbolic) dimensions and a sum, as simple as it can be."""
    value: Any = 1
    for dim in dims:
        value = value * dim
    value = value + plus if plus else value
    return value if isinstance(value, int) else sym.Analyzer().simplify(value)


def infer_encoding(op: ops.Encoder) -> relax.TupleType:
    """Type of ``encode`` and ``quantize_encode``: the encoding's tuple."""
    k, scaled = _digits(op), isinstance(op, ops.QuantizeEncode)
    *lead, last = _shape(op, "x")
    if scaled:
        _dtype(op, "x", "float32")
    elif str(op.x.ty.dtype) not in (container(k), container(k, signed=False)):
        raise op.error(
            f"{op.text('x')} is {op.x.ty.dtype}, {container(k)} or {container(k, signed=False)} "
            "is needed; insert R.astype"
        )
    columns = _static(op, last, "K")
    if columns == 0:
        raise op.error("K = 0: the activation has no columns")
    fields = _plane_types(lead, columns, k)
    if scaled:
        limit = largest_integer(k)
        _require(op, "qmax", lambda v: 1 <= v <= limit, f"in 1..{limit}")
        fields.append(_tensor([*lead, 1], "float32"))
    else:
        _require_zero_point(op, "zero_point", k, op.signed)
    if op.zero_points is not None:
        fields.append(_zero_points(op, lead))
    group = _require(op, "group_size", lambda v: v >= 0, "0 or a number of columns")
    if group:
        if columns % group:
            raise op.error(f"K = {columns} is not a multiple of group_size = {group}")
        fields.append(_tensor([*lead, columns // group], "int32"))
    if op.factors is not None:
        _expect(op, "factors", [columns], "float32")
    if op.bands is not None:
        _expect(op, "bands", [2, columns], CONTAINER[k])
    return relax.TupleType(fields)


def _require_zero_point(op: ops.Op, attribute: str, k: int, signed: bool) -> None:
    low, high = bounds(k, signed)
    _require(op, attribute, lambda v: low <= v <= high, f"in {low}..{high}")


def _zero_points(op: ops.Encoder, lead: list[Any]) -> relax.TensorType:
    """Type of zero points that come at run time: one number, or one for each row."""
    if op.zero_point:
        raise op.error(f"zero_point={op.zero_point} and zero points of run time: give one of both")
    dtype = container(op.k, op.signed)
    _dtype(op, "zero_points", dtype)
    ty = op.zero_points_type
    assert ty is not None
    if not ops.is_single(ty):
        _expect(op, "zero_points", [*lead, 1], dtype)
    return ty


def infer_balance_rows(op: ops.BalanceRows) -> relax.TensorType:
    """Type of ``balance_rows``: (M,) int32."""
    columns = _require(op, "in_features", lambda v: v > 0, "a positive K")
    for name in ("block_rows", "lanes", "min_rows"):
        _require(op, name, lambda v: v > 0, "a positive number")
    *lead, nbytes = _shape(op, "pbm")
    _dtype(op, "pbm", "uint8")
    if _static(op, nbytes, "bytes a row") != -(-columns // 8):
        raise op.error(f"the bitmap has {int(nbytes)} bytes a row, in_features = {columns}")
    return _tensor([_product(lead)], "int32")


def _dense_shape(op: ops.Dense) -> list[Any]:
    """Shape (.., N) of a dense; checks its encoding against its weight."""
    k = _digits(op)
    _require(op, "weight_bits", lambda v: v in (2, 4, 8), "2, 4 or 8")
    columns = _require(op, "in_features", lambda v: v > 0, "a positive K")
    encoding = op.encoding.ty
    if not isinstance(encoding, relax.TupleType) or len(encoding.fields) < len(ops.PLANES):
        raise op.error(f"the first argument has to be an encoding's tuple, not {encoding}")
    _require(op, "act_signed", lambda v: v in (0, 1), "0 or 1")
    signed = bool(op.act_signed)
    _require_zero_point(op, "zero_point", k, signed)
    given = op.zero_points_type
    if given is not None and (op.zero_point or str(given.dtype) != container(k, signed)):
        raise op.error(
            f"the encoding brings zero points of {given.dtype}, the op has act_signed="
            f"{op.act_signed}, zero_point={op.zero_point}"
        )
    lsb = encoding.fields[ops.PLANES.index("lsb")]
    if not isinstance(lsb, relax.TensorType) or lsb.shape is None:
        raise op.error("the shape of the encoding is not known")
    *lead, row_bytes = lsb.shape.values
    if _static(op, row_bytes, "LSB bytes a row") != -(-columns * k // 8):
        raise op.error(
            f"the encoding has {int(row_bytes)} LSB bytes a row, in_features = {columns}"
        )
    weight = [_static(op, d, "N or K") for d in _shape(op, "weight")]
    _dtype(op, "weight", "int8")
    if len(weight) != 2 or weight[1] != columns:
        raise op.error(f"the weight is {weight}, [N, {columns}] is needed")
    return [*lead, weight[0]]


def infer_split_dense(op: ops.SplitDense) -> relax.TensorType:
    """Type of ``split_dense``: (.., N) int32."""
    shape = _dense_shape(op)
    _expect(op, "offset", [shape[-1]], "int32")
    return _tensor(shape, "int32")


def infer_split_dense_scaled(op: ops.SplitDenseScaled) -> relax.TensorType:
    """Type of ``split_dense_scaled``: (.., N) float32."""
    shape = _scaled_shape(op)
    if op.row_order is not None:
        _expect(op, "row_order", [_product(shape[:-1])], "int32")
    return _tensor(shape, "float32")


def infer_split_dense_encoded(op: ops.SplitDenseEncoded) -> relax.TupleType:
    """Type of ``split_dense_encoded``: the tuple of ``encode`` of (.., N) integers."""
    shape, scale = _scaled_shape(op), op.out_scale.ty
    if not isinstance(scale, relax.TensorType) or scale.ndim != 0 or str(scale.dtype) != "float32":
        raise op.error(f"the output scale is {scale}, one float32 without dimensions is needed")
    _require_window(op, "out_window")
    _require(op, "out_signed", lambda v: v in (0, 1), "0 or 1")
    k, signed = op.k, bool(op.out_signed)
    smallest, largest = bounds(k, signed)
    rule = f"in {smallest}..{largest}"
    low = _require(op, "out_low", lambda v: smallest <= v <= largest, rule)
    _require(op, "out_high", lambda v: low <= v <= largest, f"in {low}..{largest}")
    _require_zero_point(op, "out_zero", k, signed)
    if op.bias is not None:
        _expect(op, "bias", [shape[-1]], "float32")
    if not 0 <= op.mid_scale < math.inf:
        raise op.error(f"attribute mid_scale={op.mid_scale} is no step of a grid")
    edge = GRID_LIMIT if op.mid_scale else 0
    for name in ("mid_low", "mid_zero", "mid_high"):
        _require(op, name, lambda v: -edge <= v <= edge, f"in {-edge}..{edge}")
    if op.mid_scale:
        _require(op, "mid_high", lambda v: op.mid_low < v, f"above {op.mid_low}")
    return relax.TupleType(_plane_types(shape[:-1], int(shape[-1]), k))


def _scaled_shape(op: ops.ScaledDense) -> list[Any]:
    """Shape (.., N) of a dense with scales, whose operands are held to each other."""
    group = _require(op, "group_size", lambda v: v >= 0, "0 or a number of columns")
    if op.w_min is not None and group == 0:
        raise op.error("w_min and group_sums go together, and only with groups")
    shape, columns = _dense_shape(op), op.in_features
    lead, outputs = shape[:-1], shape[-1]
    _dtype(op, "act_scale", "float32")
    if not ops.is_single(op.act_scale.ty):
        _expect(op, "act_scale", [*lead, 1], "float32")
    if group == 0:
        _expect(op, "w_scale", [outputs], "float32")
        _expect(op, "offset", [outputs], "int32")
        return shape
    if columns % group:
        raise op.error(f"K = {columns} is not a multiple of group_size = {group}")
    factors = "float32" if op.scale_bytes == 4 else "float16"
    _expect(op, "w_scale", [outputs, columns // group], factors)
    _expect(op, "offset", [outputs], "float64")
    if op.w_min is not None:
        _expect(op, "w_min", [outputs, columns // group], factors)
        _expect(op, "group_sums", [*lead, columns // group], "int32")
    return shape


def _storage(op: ops.Op, levels: str, planes: str, heads: int) -> None:
    """Hold attributes to `numerics.kv_cache.HeadStorage`, for so many key heads."""
    try:
        storage = HeadStorage(getattr(op, levels), getattr(op, planes))
    except InvalidArgumentError as error:
        raise op.error(f"attribute {levels} or {planes}: {error}") from error
    if len(storage.planes) not in (1, heads):
        raise op.error(f'attribute {planes}="{storage.planes}" is not of {heads} heads')


def infer_quantize_heads(op: ops.QuantizeHeads) -> relax.TensorType:
    """Type of ``quantize_heads``: (.., T, H, D + 4) int8."""
    shape = _shape(op, "x")
    _dtype(op, "x", "float32")
    if len(shape) < 3:
        raise op.error(f"{op.text('x')} has shape {_text(shape)}, (.., T, H, D) is needed")
    channels = _static(op, shape[-1], "D")
    _storage(op, "levels", "planes", _static(op, shape[-2], "H"))
    return _tensor([*shape[:-1], channels + SCALE_BYTES], "int8")


def infer_attention(op: ops.Attention) -> relax.TensorType:
    """Type of ``attention``: (.., T, H, Dv) float32."""
    _require(op, "causal", lambda v: v in (0, 1), "0 or 1")
    if not 0 < op.scale < math.inf:
        raise op.error(f"attribute scale={op.scale} is not positive and finite")
    _dtype(op, "q", "float32")
    *lead, tokens, q_heads, channels = _heads(op, "q")
    *k_lead, keys, kv_heads, k_channels = _heads(op, "k")
    *_, v_channels = _heads(op, "v")
    if k_channels != channels:
        raise op.error(f"queries have {channels} channels, keys {k_channels}")
    if not kv_heads or q_heads % kv_heads:
        raise op.error(f"{q_heads} query heads are not a multiple of {kv_heads} key heads")
    for of in ("key", "value"):
        _storage(op, f"{of}_levels", f"{of}_planes", kv_heads)
    _same(op, "k", k_lead, "q", lead)
    _same(op, "v", _heads(op, "v")[:-1], "k", [*k_lead, keys, kv_heads])
    if op.causal and all(hasattr(d, "value") for d in (tokens, keys)) and int(tokens) > int(keys):
        raise op.error(f"{int(tokens)} queries look at {int(keys)} keys; causal needs as many")
    if op.mask is not None:
        _expect(op, "mask", [tokens, keys], "bool")
    return _tensor([*lead, tokens, q_heads, v_channels], "float32")


def _heads(op: ops.Attention, operand: str) -> list[Any]:
    """Shape (.., tokens, heads, channels) of queries, keys or values; the last two are ints."""
    shape, ty = _shape(op, operand), getattr(op, operand).ty
    if len(shape) not in (3, 4):
        raise op.error(
            f"{op.text(operand)} has shape {_text(shape)}, (tokens, heads, channels) is needed, "
            "or the same behind a batch"
        )
    *lead, heads, channels = shape
    stored = str(ty.dtype) == "int8"
    if not stored:
        _dtype(op, operand, "float32")
    width = _static(op, channels, f"channels of {operand}") - SCALE_BYTES * stored
    if width < 1:
        raise op.error(f"{op.text(operand)} has {width} channels")
    return [*lead, _static(op, heads, f"heads of {operand}"), width]


def _same(op: ops.Attention, name: str, found: list[Any], other: str, wanted: list[Any]) -> None:
    """Hold dimensions of an operand to those of another."""
    equal = sym.Analyzer().can_prove_equal
    if len(found) != len(wanted) or not all(map(equal, found, wanted)):
        raise op.error(
            f"{op.text(name)} does not fit {op.text(other)}: {_text(found)} is not {_text(wanted)}"
        )


RULES: dict[type[ops.Op], Callable[[Any], relax.Type]] = {
    ops.Encode: infer_encoding,
    ops.QuantizeEncode: infer_encoding,
    ops.BalanceRows: infer_balance_rows,
    ops.SplitDense: infer_split_dense,
    ops.SplitDenseScaled: infer_split_dense_scaled,
    ops.SplitDenseEncoded: infer_split_dense_encoded,
    ops.QuantizeHeads: infer_quantize_heads,
    ops.Attention: infer_attention,
}
