"""Constructors and registration of the ``relax.sparqle.*`` ops.

All ops keep what is static in ``ir.DictAttrs``, so that they print and parse as
``R.sparqle.encode(q, k=4, window="signed", ...)``. An *encoding* is one Relax tuple:

====================  ==================  =======  =================================================
field                 shape               dtype    meaning
====================  ==================  =======  =================================================
0 ``lsb``             (.., ceil(K*k/8))   uint8    LSB plane, element 0 in the low bits of a byte
1 ``pbm``             (.., ceil(K/8))     uint8    bitmap, bit i of byte j is column 8j + i
2 ``msb``             (M*ceil(K*k/8),)    uint8    MSB stream, the first ``row_ptr[M]`` bytes count
3 ``row_ptr``         (M + 1,)            int32    byte offset of each row's MSBs
4 ``scale``           (.., 1)             float32  per row; only from ``quantize_encode``
last ``group_sums``   (.., K/group_size)  int32    sums of q; only if ``group_size`` > 0
====================  ==================  =======  =================================================

Source of the format: SPARQLe, arXiv 2606.00365; ``numerics/slicing.py`` defines it.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import _ffi_api as _ir_ffi
from tvm.ir import make_node

from sparqle_tvm import errors
from sparqle_tvm.dialect import infer

PREFIX = "relax.sparqle."
# Places in an encoding's tuple; without a scale, group sums stand in its place.
PBM_FIELD, SCALE_FIELD = 1, 4


def _call(name: str, args: list[Any], attrs: dict[str, Any]) -> relax.Call:
    node = make_node("ir.DictAttrs", **attrs)
    return relax.Call(tvm.ir.Op.get(PREFIX + name), args, node)


def encode(
    q: relax.Expr,
    *,
    k: int = 4,
    window: str = "unsigned",
    group_size: int = 0,
    label: str = "",
) -> relax.Call:
    """Slice an integer tensor into an encoding (fields 0 to 3, and ``group_sums``).

    Parameters
    ----------
    q : relax.Expr
        (.., K), signed 2k-bit integers: int8 for ``k`` 2 and 4, int16 for 8.
    k : int
        Bits of a digit: 2, 4 or 8.
    window : str
        ``"unsigned"`` (exact for every q) or ``"signed"`` (larger q saturate).
    group_size : int
        Columns a group sum runs over; 0 leaves the sums out.
    label : str
        Name of the tensor in reports; no pass depends on it.
    """
    attrs = {"k": k, "window": window, "group_size": group_size, "label": label}
    return _call("encode", [q], attrs)


def quantize_encode(
    x: relax.Expr,
    factors: relax.Expr | None = None,
    bands: relax.Expr | None = None,
    *,
    k: int = 4,
    window: str = "signed",
    qmax: int = 119,
    group_size: int = 0,
    label: str = "",
) -> relax.Call:
    """Quantize each row of ``x`` symmetrically to ``[-qmax, qmax]`` and slice it, in one step.

    ``scale = max(amax, 1e-30) / qmax`` and ``q = round_half_even(x / scale)``, in float32; a
    row that holds NaN or Inf gets the scale NaN. With factors, x is divided by ``scale * factor``
    (the scale itself stays as it is: the weights take the factors in), and with bands, the q that
    lie in them are clipped to the edge of the window; ``numerics/choice.py`` defines both. The
    parameters not named here are those of :func:`encode`.

    Parameters
    ----------
    x : relax.Expr
        (.., K) float32.
    factors : relax.Expr, optional
        (K,) float32, positive and finite.
    bands : relax.Expr, optional
        (2, K) of the dtype of q: smallest and largest q that is clipped; only with factors.
    qmax : int
        Largest quantized magnitude.
    """
    if bands is not None and factors is None:
        raise errors.InvalidArgumentError(
            f"sparqle.quantize_encode ({label}): bands need factors; ones change nothing"
        )
    attrs = {"k": k, "window": window, "qmax": qmax, "group_size": group_size, "label": label}
    operands = [operand for operand in (x, factors, bands) if operand is not None]
    return _call("quantize_encode", operands, attrs)


def balance_rows(
    pbm: relax.Expr,
    *,
    in_features: int,
    block_rows: int,
    lanes: int,
    min_rows: int,
    label: str = "",
) -> relax.Call:
    """Sort the rows of an encoding by the steps of their MSB digits: (M,) int32 row numbers.

    Most steps (``ceil(stored digits / lanes)``) come first, within blocks; see
    ``numerics.sorted_rows``. A dense op on the accelerator that has this operand works on the rows
    in that order; its result is in the order of the encoding all the same.

    Parameters
    ----------
    pbm : relax.Expr
        (.., ceil(K/8)) uint8, field 1 of the encoding.
    in_features : int
        K.
    block_rows : int
        Rows that are sorted together.
    lanes : int
        Digits of a step.
    min_rows : int
        With fewer rows in all, the dense ops leave them in their own order.
    """
    attrs = {
        "in_features": in_features,
        "block_rows": block_rows,
        "lanes": lanes,
        "min_rows": min_rows,
        "label": label,
    }
    return _call("balance_rows", [pbm], attrs)


def split_dense(
    encoding: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr,
    *,
    k: int,
    window: str,
    in_features: int,
    weight_bits: int,
    label: str = "",
) -> relax.Call:
    """Multiply an encoding with integer weights: (.., N) int32, exact.

    Parameters
    ----------
    encoding : relax.Expr
        Tuple of :func:`encode` or :func:`quantize_encode`.
    weight : relax.Expr
        (N, K) int8, values of ``weight_bits`` bits.
    bias : relax.Expr
        (N,) int32, added to every row: ``-2^(k-1) * sum_k w`` for the signed window.
    """
    attrs = {
        "k": k,
        "window": window,
        "in_features": in_features,
        "weight_bits": weight_bits,
        "label": label,
    }
    return _call("split_dense", [encoding, weight, bias], attrs)


def split_dense_scaled(
    encoding: relax.Expr,
    act_scale: relax.Expr,
    weight: relax.Expr,
    w_scale: relax.Expr,
    offset: relax.Expr,
    w_min: relax.Expr | None = None,
    group_sums: relax.Expr | None = None,
    row_order: relax.Expr | None = None,
    *,
    k: int,
    window: str,
    in_features: int,
    group_size: int,
    weight_bits: int,
    label: str = "",
) -> relax.Call:
    """Multiply an encoding with scaled weights: (.., N) float32.

    With ``group_size`` 0: ``(float32(acc + offset) * act_scale) * w_scale``, ``w_scale`` (N,)
    float32 and ``offset`` (N,) int32. With groups along K:
    ``float32(sum_g p_g * w_scale_g + w_min_g * group_sums_g + offset) * act_scale``, the sum in
    float64, ``w_scale`` and ``w_min`` (N, G) float16, ``offset`` (N,) float64. As float16
    factors make every term a multiple of 2^-24 with at most 28 significant bits, that sum is
    exact below 2^29, and the order of its terms cannot matter.

    Parameters
    ----------
    act_scale : relax.Expr
        (.., 1) or one number, float32.
    weight : relax.Expr
        (N, K) int8, values of ``weight_bits`` bits.
    w_min, group_sums : relax.Expr, optional
        Minimum per group of weights, and sums of q per group (.., G) int32; both or none.
    row_order : relax.Expr, optional
        Order in which an accelerator works on the rows, of :func:`balance_rows`. The result does
        not depend on it. As text prints operands by place, it may stand alone in that of `w_min`.
    """
    attrs = {
        "k": k,
        "window": window,
        "in_features": in_features,
        "group_size": group_size,
        "weight_bits": weight_bits,
        "label": label,
    }
    args = [encoding, act_scale, weight, w_scale, offset]
    if w_min is not None and group_sums is None:
        w_min, row_order = None, w_min
    if w_min is not None:
        args += [w_min, group_sums]
    if row_order is not None:
        args.append(row_order)
    return _call("split_dense_scaled", args, attrs)


def scaled_operands(
    call: relax.Call,
) -> tuple[tuple[relax.Expr, relax.Expr] | None, relax.Expr | None]:
    """The optional operands of a ``split_dense_scaled``: (w_min, group_sums), and row_order."""
    optional = list(call.args)[5:]
    row_order = optional.pop() if len(optional) % 2 else None
    return (optional[0], optional[1]) if optional else None, row_order


def split_dense_encoded(
    encoding: relax.Expr,
    act_scale: relax.Expr,
    weight: relax.Expr,
    w_scale: relax.Expr,
    offset: relax.Expr,
    out_scale: relax.Expr,
    w_min: relax.Expr | None = None,
    group_sums: relax.Expr | None = None,
    *,
    k: int,
    window: str,
    in_features: int,
    group_size: int,
    weight_bits: int,
    out_window: str = "unsigned",
    out_low: int,
    out_high: int,
    out_zero: int = 0,
    label: str = "",
    out_label: str = "",
) -> relax.Call:
    """Multiply as :func:`split_dense_scaled`, quantize with a static scale, and slice.

    ``q = min(max(round_half_even(y / out_scale) + out_zero, out_low), out_high)`` with y the
    float32 of :func:`split_dense_scaled` and a float32 division; the result is the tuple of
    :func:`encode` of q, without group sums. Parameters not named here are those of
    :func:`split_dense_scaled`.

    A scale per row depends on all of a row's outputs, which no tile of the accelerator has at
    once: such rows are quantized by :func:`quantize_encode`, on the vector unit.

    Parameters
    ----------
    out_scale : relax.Expr
        One number, () float32.
    out_window : str
        Window of the result, as of :func:`encode`.
    out_low, out_high : int
        Limits of q, both exact in the window: ``out_low`` is the zero point behind a ReLU.
    out_zero : int
        Zero point of q.
    out_label : str
        Name of the result in reports.
    """
    attrs = {
        "k": k,
        "window": window,
        "in_features": in_features,
        "group_size": group_size,
        "weight_bits": weight_bits,
        "out_window": out_window,
        "out_low": out_low,
        "out_high": out_high,
        "out_zero": out_zero,
        "label": label,
        "out_label": out_label,
    }
    args = [encoding, act_scale, weight, w_scale, offset, out_scale]
    if w_min is not None:
        args += [w_min, group_sums]
    return _call("split_dense_encoded", args, attrs)


CONSTRUCTORS: dict[str, Callable[..., relax.Call]] = {
    "encode": encode,
    "quantize_encode": quantize_encode,
    "balance_rows": balance_rows,
    "split_dense": split_dense,
    "split_dense_scaled": split_dense_scaled,
    "split_dense_encoded": split_dense_encoded,
}


def is_op(expr: Any, *names: str) -> bool:
    """Whether ``expr`` is a call to one of the dialect's ops (any of them if none is named)."""
    if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.Op):
        return False
    name = str(expr.op.name)
    return name.startswith(PREFIX) and (not names or name[len(PREFIX) :] in names)


def attributes(call: relax.Call) -> dict[str, Any]:
    """The static attributes of a dialect call, as Python ints and strings."""
    return {
        str(key): str(value) if isinstance(value, str) else int(value)
        for key, value in call.attrs.items()
    }


def with_attributes(call: relax.Call, args: list[Any] | None = None, **changes: Any) -> relax.Call:
    """The same op with some attributes (and, if given, the arguments) replaced."""
    name = str(call.op.name)[len(PREFIX) :]
    return _call(name, list(call.args) if args is None else args, attributes(call) | changes)


def _legalize(name: str) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        from sparqle_tvm.host import legalize as host  # deferred: only LegalizeOps needs kernels

        lowered: relax.Expr = getattr(host, f"legalize_{name}")(builder, call)
        return lowered

    return legalize


def register() -> None:
    """Make the dialect known to TVM and to its TVMScript parser. Idempotent."""
    from tvm.relax.script import parser as relax_parser
    from tvm.script import relax as relax_script

    # Type inference runs inside C++: without this its errors would come out as RuntimeError.
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.SparqleError):
            tvm_ffi.register_error(f"sparqle_tvm.{error.__name__}", error)
    known = set(tvm.ir.Op.list_op_names())
    for name, (infer_type, inputs) in infer.RULES.items():
        if PREFIX + name in known:
            continue
        _ir_ffi.RegisterOp(PREFIX + name, (CONSTRUCTORS[name].__doc__ or "").split("\n")[0])
        op = tvm.ir.Op.get(PREFIX + name)
        op.set_num_inputs(inputs)
        _ir_ffi.OpSetAttr(op, "FInferType", infer_type, 10)
        _ir_ffi.OpSetAttr(op, "FPurity", True, 10)
        _ir_ffi.OpSetAttr(op, "FLegalize", _legalize(name), 10)
    namespace = types.SimpleNamespace(**CONSTRUCTORS)
    for module in (relax_script, relax_parser):
        if not hasattr(module, "sparqle"):
            module.sparqle = namespace
