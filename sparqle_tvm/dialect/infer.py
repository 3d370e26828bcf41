"""Type inference of the ``R.sparqle`` ops, symbolic shapes included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, sym

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.slicing import WINDOWS, max_exact

# Container of a signed 2k-bit integer.
CONTAINER = {2: "int8", 4: "int8", 8: "int16"}


def _fail(call: relax.Call, message: str) -> InvalidArgumentError:
    label = str(call.attrs.get("label", "")) if call.attrs else ""
    where = f" ({label})" if label else ""
    return InvalidArgumentError(f"{str(call.op.name).removeprefix('relax.')}{where}: {message}")


def _shape(call: relax.Call, arg: int, what: str) -> list[Any]:
    """The shape of a tensor argument, whose rank has to be known and at least 1."""
    ty = call.args[arg].ty
    if not isinstance(ty, relax.TensorType):
        raise _fail(call, f"{what} has to be a tensor, not {ty}")
    if ty.shape is None:
        raise _fail(call, f"the shape of {what} is not known; add a R.match_cast before it")
    dims = list(ty.shape.values)
    if not dims:
        raise _fail(call, f"{what} is a scalar, a tensor (.., K) is needed")
    return dims


def _text(dims: list[Any]) -> str:
    """A shape as people write it: ``[2, n]``."""
    shown = [str(int(d)) if isinstance(d, int) or hasattr(d, "value") else str(d) for d in dims]
    return f"[{', '.join(shown)}]"


def _static(call: relax.Call, dim: Any, what: str) -> int:
    """A dimension that has to be a number at compile time."""
    if isinstance(dim, int) or hasattr(dim, "value"):
        return int(dim)
    raise _fail(call, f"{what} = {dim} is symbolic; bind it with BindSymbolicVars")


def _dtype(call: relax.Call, arg: int, what: str, wanted: str) -> None:
    ty = call.args[arg].ty
    found = str(ty.dtype) if isinstance(ty, relax.TensorType) else f"no tensor but {ty}"
    if found != wanted:
        raise _fail(call, f"{what} is {found}, {wanted} is needed; insert R.astype")


def _int_attr(call: relax.Call, name: str, allowed: Callable[[int], bool], rule: str) -> int:
    value = call.attrs.get(name)
    if value is None or not allowed(int(value)):
        raise _fail(call, f"attribute {name}={value} is not {rule}")
    return int(value)


def _common_attrs(call: relax.Call) -> int:
    window = str(call.attrs.get("window", ""))
    if window not in ("signed", "unsigned"):
        raise _fail(call, f'attribute window="{window}" is neither "signed" nor "unsigned"')
    return _int_attr(call, "k", lambda k: k in CONTAINER, "2, 4 or 8")


def _tensor(shape: list[Any], dtype: str) -> relax.TensorType:
    return relax.TensorType(relax.ShapeExpr(shape), dtype)


def _plane_types(lead: list[Any], columns: int, k: int) -> list[relax.TensorType]:
    """Types of ``lsb``, ``pbm``, ``msb`` and ``row_ptr`` of (.., columns) activations."""
    analyzer = sym.Analyzer()
    rows: Any = 1
    for dim in lead:
        rows = rows * dim
    lsb_bytes = -(-columns * k // 8)

    def simplified(value: Any) -> Any:
        return value if isinstance(value, int) else analyzer.simplify(value)

    return [
        _tensor([*lead, lsb_bytes], "uint8"),
        _tensor([*lead, -(-columns // 8)], "uint8"),
        _tensor([simplified(rows * lsb_bytes)], "uint8"),
        _tensor([simplified(rows + 1)], "int32"),
    ]


def _encoding_type(call: relax.Call, *, scaled: bool) -> relax.TupleType:
    k = _common_attrs(call)
    dims = _shape(call, 0, "the activation")
    lead, columns = dims[:-1], dims[-1]
    _dtype(call, 0, "the activation", "float32" if scaled else CONTAINER[k])
    columns = _static(call, columns, "K")
    if columns == 0:
        raise _fail(call, "K = 0: the activation has no columns")
    fields = _plane_types(lead, columns, k)
    if scaled:
        limit = 2 ** (2 * k - 1) - 1
        _int_attr(call, "qmax", lambda v: 1 <= v <= limit, f"in 1..{limit}")
        fields.append(_tensor([*lead, 1], "float32"))
    group = _int_attr(call, "group_size", lambda v: v >= 0, "0 or a number of columns")
    if group:
        if columns % group:
            raise _fail(call, f"K = {columns} is not a multiple of group_size = {group}")
        fields.append(_tensor([*lead, columns // group], "int32"))
    return relax.TupleType(fields)


def infer_encode(call: relax.Call, _builder: Any) -> relax.TupleType:
    """Type of ``encode``: the encoding's tuple."""
    return _encoding_type(call, scaled=False)


def infer_quantize_encode(call: relax.Call, _builder: Any) -> relax.TupleType:
    """Type of ``quantize_encode``: the encoding's tuple with the scale."""
    if not 1 <= len(call.args) <= 3:
        raise _fail(call, f"{len(call.args)} operands; x, factors and bands are possible")
    found = _encoding_type(call, scaled=True)
    columns = _shape(call, 0, "the activation")[-1]
    if len(call.args) > 1:
        _expect(call, 1, "the tensor of factors", [columns], "float32")
    if len(call.args) > 2:
        _expect(call, 2, "the tensor of bands", [2, columns], CONTAINER[int(call.attrs["k"])])
    return found


def infer_balance_rows(call: relax.Call, _builder: Any) -> relax.TensorType:
    """Type of ``balance_rows``: (M,) int32."""
    columns = _int_attr(call, "in_features", lambda v: v > 0, "a positive K")
    for name in ("block_rows", "lanes", "min_rows"):
        _int_attr(call, name, lambda v: v > 0, "a positive number")
    *lead, nbytes = _shape(call, 0, "the bitmap")
    _dtype(call, 0, "the bitmap", "uint8")
    if _static(call, nbytes, "bytes a row") != -(-columns // 8):
        raise _fail(call, f"the bitmap has {int(nbytes)} bytes a row, in_features = {columns}")
    return _tensor([_row_count(lead)], "int32")


def _row_count(lead: list[Any]) -> Any:
    """Rows of a (maybe symbolic) shape, as simple as it can be."""
    rows: Any = 1
    for dim in lead:
        rows = rows * dim
    return rows if isinstance(rows, int) else sym.Analyzer().simplify(rows)


def _dense_shape(call: relax.Call, weight_arg: int) -> tuple[list[Any], int, int]:
    """Shape (.., N) of a dense, its K, and its weight's N; checks encoding against weight."""
    k = _common_attrs(call)
    _int_attr(call, "weight_bits", lambda v: v in (2, 4, 8), "2, 4 or 8")
    columns = _int_attr(call, "in_features", lambda v: v > 0, "a positive K")
    encoding = call.args[0].ty
    if not isinstance(encoding, relax.TupleType) or len(encoding.fields) < 4:
        raise _fail(call, f"the first argument has to be an encoding's tuple, not {encoding}")
    lsb = encoding.fields[0]
    if not isinstance(lsb, relax.TensorType) or lsb.shape is None:
        raise _fail(call, "the shape of the encoding is not known")
    dims = list(lsb.shape.values)
    if _static(call, dims[-1], "LSB bytes a row") != -(-columns * k // 8):
        row_bytes = int(dims[-1])
        raise _fail(call, f"the encoding has {row_bytes} LSB bytes a row, in_features = {columns}")
    weight = [_static(call, d, "N or K") for d in _shape(call, weight_arg, "the weight")]
    _dtype(call, weight_arg, "the weight", "int8")
    if len(weight) != 2 or weight[1] != columns:
        raise _fail(call, f"the weight is {weight}, [N, {columns}] is needed")
    return [*dims[:-1], weight[0]], columns, weight[0]


def _expect(call: relax.Call, arg: int, what: str, shape: list[Any], dtype: str) -> None:
    """Hold a tensor argument to a dtype and a (maybe symbolic) shape."""
    _dtype(call, arg, what, dtype)
    found = _shape(call, arg, what)
    analyzer = sym.Analyzer()
    if len(found) != len(shape) or not all(
        analyzer.can_prove_equal(a, b) for a, b in zip(found, shape, strict=True)
    ):
        raise _fail(call, f"{what} has shape {_text(found)}, {_text(shape)} is needed")


def infer_split_dense(call: relax.Call, _builder: Any) -> relax.TensorType:
    """Type of ``split_dense``: (.., N) int32."""
    shape, _, outputs = _dense_shape(call, 1)
    _expect(call, 2, "the bias", [outputs], "int32")
    return _tensor(shape, "int32")


def infer_split_dense_scaled(call: relax.Call, _builder: Any) -> relax.TensorType:
    """Type of ``split_dense_scaled``: (.., N) float32."""
    return _tensor(_scaled_shape(call, 5), "float32")


def infer_split_dense_encoded(call: relax.Call, _builder: Any) -> relax.TupleType:
    """Type of ``split_dense_encoded``: the tuple of ``encode`` of (.., N) integers."""
    shape = _scaled_shape(call, 6)
    scale = call.args[5].ty
    if not isinstance(scale, relax.TensorType) or scale.ndim != 0 or str(scale.dtype) != "float32":
        raise _fail(call, f"the output scale is {scale}, one float32 without dimensions is needed")
    window, k = str(call.attrs.get("out_window", "")), int(call.attrs["k"])
    if window not in WINDOWS:
        raise _fail(call, f'attribute out_window="{window}" is neither "signed" nor "unsigned"')
    smallest, largest = -(2 ** (2 * k - 1)), max_exact(k, window)
    rule = f"in {smallest}..{largest}"
    low = _int_attr(call, "out_low", lambda v: smallest <= v <= largest, rule)
    _int_attr(call, "out_high", lambda v: low <= v <= largest, f"in {low}..{largest}")
    zeros = range(smallest, -smallest)
    _int_attr(call, "out_zero", lambda v: v in zeros, f"in {smallest}..{-smallest - 1}")
    return relax.TupleType(_plane_types(shape[:-1], int(shape[-1]), k))


def _scaled_shape(call: relax.Call, count: int) -> list[Any]:
    """Shape (.., N) of a dense with scales, which has `count` arguments that are no option."""
    is_scaled = str(call.op.name).endswith("split_dense_scaled")
    group = _int_attr(call, "group_size", lambda v: v >= 0, "0 or a number of columns")
    optional = len(call.args) - count
    # What leaves encoded is stored in the order in which its rows come.
    forms = (0, 1, 2, 3) if is_scaled else (0, 2)
    if optional not in forms or (optional > 1 and group == 0):
        raise _fail(call, "w_min and group_sums go together, and only with groups")
    shape, columns, outputs = _dense_shape(call, 2)
    _dtype(call, 1, "the activation scale", "float32")
    scale = call.args[1].ty.shape
    if scale is None or any(not hasattr(d, "value") or int(d) != 1 for d in scale.values):
        _expect(call, 1, "the activation scale", [*shape[:-1], 1], "float32")
    if group == 0:
        _expect(call, 3, "the weight scale", [outputs], "float32")
        _expect(call, 4, "the offset", [outputs], "int32")
    else:
        if columns % group:
            raise _fail(call, f"K = {columns} is not a multiple of group_size = {group}")
        _expect(call, 3, "the weight scale", [outputs, columns // group], "float16")
        _expect(call, 4, "the offset", [outputs], "float64")
    if optional % 2:
        rows = [_row_count(shape[:-1])]
        _expect(call, len(call.args) - 1, "the row order", rows, "int32")
    if optional > 1:
        _expect(call, count, "the weight minimum", [outputs, columns // group], "float16")
        _expect(call, count + 1, "the group sums", [*shape[:-1], columns // group], "int32")
    return shape


# Name -> (rule, number of inputs; -1 is any).
RULES: dict[str, tuple[Callable[..., Any], int]] = {
    "encode": (infer_encode, 1),
    "quantize_encode": (infer_quantize_encode, -1),
    "balance_rows": (infer_balance_rows, 1),
    "split_dense": (infer_split_dense, 3),
    "split_dense_scaled": (infer_split_dense_scaled, -1),
    "split_dense_encoded": (infer_split_dense_encoded, -1),
}
