"""Declarations of the ``relax.sparqle.*`` ops: one class gives constructor, checks and view.

An op's class lists its operands in their order and its static attributes by keyword. From that
come the function that builds a call (``dialect.encode(x, k=4)``, in text ``R.sparqle.encode``),
the number of operands that is allowed, and the typed view of a call: ``Encode.of(call).window``.

Attributes are kept in ``ir.DictAttrs``, so that calls print and parse as
``R.sparqle.encode(q, k=4, window="signed", ...)``. An *encoding* is one Relax tuple:

====================  ==================  =======  =================================================
field                 shape               dtype    meaning
====================  ==================  =======  =================================================
0 ``lsb``             (.., ceil(K*k/8))   uint8    LSB plane, element 0 in the low bits of a byte
1 ``pbm``             (.., ceil(K/8))     uint8    bitmap, bit i of byte j is column 8j + i
2 ``msb``             (M*ceil(K*k/8),)    uint8    MSB stream, the first ``row_ptr[M]`` bytes count
3 ``row_ptr``         (M + 1,)            int32    byte offset of each row's MSBs
4 ``scale``           (.., 1)             float32  per row; only from ``quantize_encode``
4 ``zero_points``     (.., 1) or one      of q     only if ``encode`` is given them at run time
last ``group_sums``   (.., K/group_size)  int32    sums of q - zero point, if ``group_size`` > 0
====================  ==================  =======  =================================================

Source of the format: SPARQLe, arXiv 2606.00365; ``numerics/slicing.py`` defines it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import Any, ClassVar, Self

import tvm
from tvm import relax
from tvm.ir import make_node

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.integers import CONTAINER
from sparqle_tvm.numerics.window import Digits, window_of

PREFIX = "relax.sparqle."
PLANES = ("lsb", "pbm", "msb", "row_ptr")


# What errors call operands; the others by their names.
TEXTS = {
    "x": "activation",
    "factors": "tensor of factors",
    "bands": "tensor of bands",
    "pbm": "bitmap",
    "act_scale": "activation scale",
    "w_scale": "weight scale",
    "w_min": "weight minimum",
    "out_scale": "output scale",
    "q": "tensor of queries",
    "k": "tensor of keys",
    "v": "tensor of values",
}


def plane(encoding: relax.Expr, name: str) -> relax.TupleGetItem:
    """Read one of the `PLANES` of an encoding."""
    return relax.TupleGetItem(encoding, PLANES.index(name))


@dataclass(frozen=True, eq=False)
class Op:
    """A call of one of the dialect's ops, its operands and attributes by name.

    Attributes
    ----------
    NAME : str
        Name of the op, without prefix.
    FORMS : tuple of tuple of str
        The optional operands that may come together, no two forms of the same length: so their
        number tells which they are.
    """

    NAME: ClassVar[str]
    FORMS: ClassVar[tuple[tuple[str, ...], ...]] = ((),)

    label: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse optional operands that do not come together: InvalidArgumentError."""
        _, optional = _operands(self.NAME)
        given = tuple(name for name in optional if getattr(self, name) is not None)
        if given not in self.FORMS:
            # Every set of optional operands is part of the last, longest form.
            wider = next(form for form in self.FORMS if {*given} < {*form})
            missing = " and ".join(name for name in wider if name not in given)
            raise self.error(f"{' and '.join(given)} need {missing}")

    @classmethod
    def of(cls, expr: Any) -> Self | None:
        """The view of a call of this op, or of one of this kind; None for anything else."""
        op = OPS.get(op_name(expr))
        return op._read(expr) if op is not None and issubclass(op, cls) else None

    @classmethod
    def _read(cls, call: relax.Call) -> Self:
        names = cls.operand_names(len(call.args), str(call.attrs.get("label", "")))
        known = _attributes(cls.NAME)
        attributes: dict[str, Any] = {
            str(name): _plain(value) for name, value in call.attrs.items() if str(name) in known
        }
        try:
            return cls(**dict(zip(names, call.args, strict=True)), **attributes)
        except TypeError as error:
            raise InvalidArgumentError(f"sparqle.{cls.NAME}: {error}") from error

    @classmethod
    def operand_names(cls, count: int, label: str = "") -> tuple[str, ...]:
        """What so many operands are; InvalidArgumentError if the op is never called with them."""
        required, optional = _operands(cls.NAME)
        for form in cls.FORMS:
            if len(required) + len(form) == count:
                return (*required, *form)
        where = f" ({label})" if label else ""
        raise InvalidArgumentError(
            f"sparqle.{cls.NAME}{where}: {count} operands; "
            f"{', '.join((*required, *optional))} are possible"
        )

    @classmethod
    def operand_count(cls) -> int:
        """Number of operands, -1 if some are optional."""
        required, optional = _operands(cls.NAME)
        return -1 if optional else len(required)

    @classmethod
    def build(cls, *operands: relax.Expr | None, **named: Any) -> relax.Call:
        """Build a call, operands in their order (as text has them) or by name.

        Raises
        ------
        InvalidArgumentError
            If optional operands are missing that go together with a given one.
        """
        every = [name for names in _operands(cls.NAME) for name in names]
        # As text leaves out what is optional, the number of operands tells which they are.
        by_number = None not in operands and not {*every} & {*named}
        if by_number or len(operands) > len(every):
            every = list(cls.operand_names(len(operands), named.get("label", "")))
        given: dict[str, Any] = dict(zip(every, operands, strict=False))
        return cls(**given, **named).call()

    def call(self) -> relax.Call:
        """Build the call that this is a view of."""
        operands = [getattr(self, name) for names in _operands(self.NAME) for name in names]
        given = [operand for operand in operands if operand is not None]
        node = make_node("ir.DictAttrs", **self.attributes)
        return relax.Call(tvm.ir.Op.get(PREFIX + self.NAME), given, node)

    def changed(self, **changes: Any) -> relax.Call:
        """Build a call of the same op with other operands or attributes."""
        return dataclasses.replace(self, **changes).call()

    @property
    def attributes(self) -> dict[str, Any]:
        """The static attributes, as Python numbers and strings."""
        return {name: getattr(self, name) for name in _attributes(self.NAME)}

    @staticmethod
    def text(operand: str) -> str:
        """What errors call an operand."""
        return f"the {TEXTS.get(operand, operand.replace('_', ' '))}"

    def error(self, message: str) -> InvalidArgumentError:
        """An error that names the op and its label."""
        where = f" ({self.label})" if self.label else ""
        return InvalidArgumentError(f"sparqle.{self.NAME}{where}: {message}")


def _plain(value: Any) -> str | float | int:
    """An attribute as Python has it, not as a subclass of TVM's."""
    if isinstance(value, str):
        return str(value)
    return float(value) if isinstance(value, float) else int(value)


@cache
def _operands(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the operands that an op needs, and of those that it may have."""
    found = [f for f in dataclasses.fields(OPS[name]) if not f.kw_only]
    required = tuple(f.name for f in found if f.default is dataclasses.MISSING)
    return required, tuple(f.name for f in found if f.default is not dataclasses.MISSING)


@cache
def _attributes(name: str) -> tuple[str, ...]:
    """Names of an op's attributes, the labels last."""
    names = [f.name for f in dataclasses.fields(OPS[name]) if f.kw_only]
    return tuple(sorted(names, key=lambda name: name.endswith("label")))


class Encoder(Op):
    """What ``encode`` and ``quantize_encode`` have in common.

    Attributes
    ----------
    x : relax.Expr
        (.., K), what is encoded.
    qmax : int
        Largest quantized magnitude; 0 if x is quantized already.
    """

    x: relax.Expr
    k: int
    window: str
    group_size: int
    zero_point: int = 0
    zero_points: relax.Expr | None = None
    factors: relax.Expr | None = None
    bands: relax.Expr | None = None
    qmax: int = 0

    @property
    def signed(self) -> bool:
        """Whether the integers are signed."""
        return bool(self.qmax) or not str(self.x.ty.dtype).startswith("u")

    @property
    def digits(self) -> Digits:
        """How the window splits, around the constant zero point."""
        found = window_of(self.window)
        return found.digits(self.k, signed=self.signed, zero_point=self.zero_point)

    @property
    def zero_points_type(self) -> relax.TensorType | None:
        """Type of the zero points of run time, None if there are none."""
        return None if self.zero_points is None else self.zero_points.ty

    @property
    def columns(self) -> int:
        """K."""
        return int(self.x.ty.shape.values[-1])

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields of the encoding's tuple, in their order."""
        optional = {
            "scale": self.qmax,
            "zero_points": self.zero_points is not None,
            "group_sums": self.group_size,
        }
        return (*PLANES, *(name for name, present in optional.items() if present))

    def field(self, encoding: relax.Expr, name: str) -> relax.TupleGetItem:
        """Read one of the `fields` of the tuple."""
        return relax.TupleGetItem(encoding, self.fields.index(name))


@dataclass(frozen=True, eq=False)
class Encode(Encoder):
    """Slice an integer tensor into an encoding (the planes, and ``group_sums``).

    Parameters
    ----------
    x : relax.Expr
        (.., K), 2k-bit integers: int8 or uint8 for ``k`` 2 and 4, int16 or uint16 for 8.
    zero_points : relax.Expr, optional
        Zero points that are not known before run time, of the dtype of x: one number, or one per
        row, (.., 1). They become a field of the encoding.
    k : int
        Bits of a digit: 2, 4 or 8.
    window : str
        ``"signed"``, centred on the zero point, or ``"unsigned"``; `numerics.window` defines both.
    zero_point : int
        The integer that stands for 0, if that is a constant.
    group_size : int
        Columns a group sum runs over; 0 leaves the sums out.
    label : str
        Name of the tensor in reports; no pass depends on it.
    """

    NAME: ClassVar[str] = "encode"
    FORMS: ClassVar[tuple[tuple[str, ...], ...]] = ((), ("zero_points",))

    x: relax.Expr
    zero_points: relax.Expr | None = None
    _: KW_ONLY
    k: int = 4
    window: str = "unsigned"
    zero_point: int = 0
    group_size: int = 0


@dataclass(frozen=True, eq=False)
class QuantizeEncode(Encoder):
    """Quantize each row of ``x`` symmetrically to ``[-qmax, qmax]`` and slice it, in one step.

    ``scale = max(amax, 1e-30) / qmax`` and ``q = round_half_even(x / scale)``, in float32; a
    row that holds NaN or Inf gets the scale NaN. With factors, x is divided by ``scale * factor``
    (the scale itself stays as it is: the weights take the factors in), and with bands, the q that
    lie in them are clipped to the edge of the window; ``numerics/choice.py`` defines both. The
    parameters not named here are those of `Encode`.

    Parameters
    ----------
    x : relax.Expr
        (.., K) float32.
    factors : relax.Expr, optional
        (K,) float32, positive and finite.
    bands : relax.Expr, optional
        (2, K) of the dtype of q: smallest and largest q that is clipped; only with factors (ones
        change nothing).
    qmax : int
        Largest quantized magnitude.
    """

    NAME: ClassVar[str] = "quantize_encode"
    FORMS: ClassVar[tuple[tuple[str, ...], ...]] = ((), ("factors",), ("factors", "bands"))

    x: relax.Expr
    factors: relax.Expr | None = None
    bands: relax.Expr | None = None
    _: KW_ONLY
    k: int = 4
    window: str = "signed"
    qmax: int = 127
    group_size: int = 0


@dataclass(frozen=True, eq=False)
class BalanceRows(Op):
    """Sort the rows of an encoding by the steps of their MSB digits: (M,) int32 row numbers.

    Most steps (``ceil(stored digits / lanes)``) come first, within blocks; see
    ``numerics.sorted_rows``. A dense op on the accelerator that has this operand works on the rows
    in that order; its result is in the order of the encoding all the same.

    Parameters
    ----------
    pbm : relax.Expr
        (.., ceil(K/8)) uint8, a plane of the encoding.
    in_features : int
        K.
    block_rows : int
        Rows that are sorted together.
    lanes : int
        Digits of a step.
    min_rows : int
        With fewer rows in all, the dense ops leave them in their own order.
    """

    NAME: ClassVar[str] = "balance_rows"

    pbm: relax.Expr
    _: KW_ONLY
    in_features: int
    block_rows: int
    lanes: int
    min_rows: int


class Dense(Op):
    """What all multiplications of an encoding with weights have in common; see `SplitDense`."""

    encoding: relax.Expr
    weight: relax.Expr
    offset: relax.Expr
    k: int
    window: str
    act_signed: int = 1
    zero_point: int = 0
    in_features: int
    weight_bits: int
    group_size: int = 0
    w_min: relax.Expr | None = None
    group_sums: relax.Expr | None = None
    row_order: relax.Expr | None = None

    @property
    def out_features(self) -> int:
        """N; the weight's shape is static."""
        return int(self.weight.ty.shape.values[0])

    @property
    def has_min(self) -> bool:
        """Whether groups of weights have a minimum."""
        return self.w_min is not None

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scale of a group of weights: of a float16, or of a float32."""
        scale = getattr(self, "w_scale", None)
        return 4 if self.group_size and scale is not None and scale.ty.dtype == "float32" else 2

    @property
    def digits(self) -> Digits:
        """What the stored digits stand for, with the constant zero point."""
        found = window_of(self.window)
        return found.digits(self.k, signed=bool(self.act_signed), zero_point=self.zero_point)

    @property
    def zero_points_type(self) -> relax.TensorType | None:
        """Type of the zero points that the encoding brings along, None if it has none."""
        fields = list(self.encoding.ty.fields)[len(PLANES) : len(PLANES) + 1]
        # Neither scales nor group sums are of the dtypes of q.
        integers = {*CONTAINER.values(), *(f"u{dtype}" for dtype in CONTAINER.values())}
        found = fields[0] if fields and str(fields[0].dtype) in integers else None
        return found

    @property
    def zero_points(self) -> relax.Expr | None:
        """The zero points that the encoding brings along: (.., 1) or one number."""
        if self.zero_points_type is None:
            return None
        return relax.TupleGetItem(self.encoding, len(PLANES))


@dataclass(frozen=True, eq=False)
class ScaledDense(Dense):
    """A multiplication with scales; see `SplitDenseScaled`."""

    encoding: relax.Expr
    act_scale: relax.Expr
    weight: relax.Expr
    w_scale: relax.Expr
    offset: relax.Expr
    _: KW_ONLY
    k: int
    window: str
    act_signed: int = 1
    zero_point: int = 0
    in_features: int = field()
    group_size: int = field()
    weight_bits: int = field()


@dataclass(frozen=True, eq=False)
class SplitDense(Dense):
    """Multiply an encoding with integer weights: (.., N) int32, exact.

    The sum is that over the digits as they are stored, plus the offset. With the offset of
    ``numerics.bias_term`` it is that of ``(q - zero_point) * w``. Zero points per row lack
    ``Digits.shift`` of the row times the sum of the channel's weights, which is 0 unless a zero
    point lies at an end of its type; it is added after the op.

    Parameters
    ----------
    encoding : relax.Expr
        Tuple of `Encode` or `QuantizeEncode`.
    weight : relax.Expr
        (N, K) int8, values of ``weight_bits`` bits.
    offset : relax.Expr
        (N,) int32, added to every row; undoes the bias of the window's digits, see
        ``numerics.bias_term``.
    act_signed : int
        1 if the activations were signed integers, 0 if not.
    zero_point : int
        Their constant zero point; zero points of run time are a field of the encoding.
    """

    NAME: ClassVar[str] = "split_dense"

    encoding: relax.Expr
    weight: relax.Expr
    offset: relax.Expr
    _: KW_ONLY
    k: int
    window: str
    act_signed: int = 1
    zero_point: int = 0
    in_features: int = field()
    weight_bits: int = field()


@dataclass(frozen=True, eq=False)
class SplitDenseScaled(ScaledDense):
    """Multiply an encoding with scaled weights: (.., N) float32.

    With ``group_size`` 0: ``(float32(acc + offset) * act_scale) * w_scale``, ``w_scale`` (N,)
    float32 and ``offset`` (N,) int32. With groups along K:
    ``float32(sum_g p_g * w_scale_g + w_min_g * group_sums_g + offset) * act_scale``, the sum in
    float64, ``w_scale`` and ``w_min`` (N, G) float16, or both float32 and multiples of 2^-24,
    as products of float16 and integers are; ``offset`` (N,) float64. Every term is a multiple of
    2^-24 (float16 is one too), so that sum is exact below 2^29, and the order of its terms cannot
    matter.

    Parameters
    ----------
    act_scale : relax.Expr
        (.., 1) or one number, float32.
    weight : relax.Expr
        (N, K) int8, values of ``weight_bits`` bits.
    w_min, group_sums : relax.Expr, optional
        Minimum per group of weights, and sums of q per group (.., G) int32; both or none.
    row_order : relax.Expr, optional
        Order in which an accelerator works on the rows, of `BalanceRows`. The result does not
        depend on it.
    """

    NAME: ClassVar[str] = "split_dense_scaled"
    FORMS: ClassVar[tuple[tuple[str, ...], ...]] = (
        (),
        ("row_order",),
        ("w_min", "group_sums"),
        ("w_min", "group_sums", "row_order"),
    )

    w_min: relax.Expr | None = None
    group_sums: relax.Expr | None = None
    row_order: relax.Expr | None = None

    def encoded(self, **output: Any) -> relax.Call:
        """Build the `SplitDenseEncoded` of this, from its operand and attributes ``out_*``.

        The order of the rows is left out: an encoded result is stored as its rows come.
        """
        return SplitDenseEncoded(**_shared(self), **output).call()


def _shared(op: ScaledDense) -> dict[str, Any]:
    """Operands and attributes that `SplitDenseScaled` and `SplitDenseEncoded` both have."""
    shared = {f.name for f in dataclasses.fields(SplitDenseEncoded)}
    shared &= {f.name for f in dataclasses.fields(SplitDenseScaled)}
    return {name: getattr(op, name) for name in shared}


@dataclass(frozen=True, eq=False)
class SplitDenseEncoded(ScaledDense):
    """Multiply as `SplitDenseScaled`, quantize with a static scale, and slice.

    ``q = min(max(round_half_even((y + bias) / out_scale) + out_zero, out_low), out_high)`` with y
    the float32 of `SplitDenseScaled`, every operation rounded to float32 by itself; the result is
    the tuple of `Encode` of q, without group sums. With ``mid_scale``, y comes onto a grid of its
    own before the bias is added; `numerics.requantize` defines all of it. Parameters not named here
    are those of `SplitDenseScaled`.

    A scale per row depends on all of a row's outputs, which no tile of the accelerator has at
    once: such rows are quantized by `QuantizeEncode`, on the vector unit.

    Parameters
    ----------
    out_scale : relax.Expr
        One number, () float32.
    bias : relax.Expr, optional
        (N,) float32.
    mid_scale : float
        Step of that grid, a float32; 0: there is none.
    mid_zero, mid_low, mid_high : int
        Its zero point and limits.
    out_window : str
        Window of the result, as of `Encode`.
    out_low, out_high : int
        Limits of q: ``out_low`` is the zero point behind a ReLU.
    out_zero : int
        Zero point of q, which its window is centred on.
    out_signed : int
        1 if q is a signed integer, 0 if not.
    out_label : str
        Name of the result in reports.
    """

    NAME: ClassVar[str] = "split_dense_encoded"
    FORMS: ClassVar[tuple[tuple[str, ...], ...]] = (
        (),
        ("bias",),
        ("w_min", "group_sums"),
        ("bias", "w_min", "group_sums"),
    )

    out_scale: relax.Expr
    bias: relax.Expr | None = None
    w_min: relax.Expr | None = None
    group_sums: relax.Expr | None = None
    _: KW_ONLY
    out_window: str = "unsigned"
    out_low: int
    out_high: int
    out_zero: int = 0
    out_signed: int = 1
    mid_scale: float = 0.0
    mid_zero: int = 0
    mid_low: int = 0
    mid_high: int = 0
    out_label: str = ""

    @property
    def out_digits(self) -> Digits:
        """How the results are split."""
        found = window_of(self.out_window)
        return found.digits(self.k, signed=bool(self.out_signed), zero_point=self.out_zero)

    def scaled(self) -> relax.Call:
        """Build the multiplication alone, with a float32 result."""
        return SplitDenseScaled(**_shared(self)).call()


@dataclass(frozen=True, eq=False)
class QuantizeHeads(Op):
    """Quantize keys or values with a scale per token and head, as a cache stores them.

    ``numerics.attention.quantize_heads`` defines it. Integers and scale lie side by side, so that
    a token is appended in one piece: (.., T, H, D + 4) int8, the last four the bytes of the
    float32 scale, low byte first. A head that holds NaN or Inf gets the scale NaN.

    Parameters
    ----------
    x : relax.Expr
        (.., T, H, D) float32.
    levels : int
        Largest quantized magnitude.
    planes : str
        A letter per head, ``p`` where an accelerator's memory holds it in two planes, ``-`` where
        as plain integers; a single letter holds for all. It changes no value.
    """

    NAME: ClassVar[str] = "quantize_heads"

    x: relax.Expr
    _: KW_ONLY
    levels: int = 127
    planes: str = "-"


@dataclass(frozen=True, eq=False)
class Attention(Op):
    """Grouped-query attention in integers: (.., T, H, Dv) float32; `numerics.attention` defines it.

    All dimensions but H, kv_heads, D and Dv may be symbolic; there may be one leading dimension
    of independent sequences. Rows of the result that see a NaN or Inf are NaN.

    Parameters
    ----------
    q : relax.Expr
        (.., T, H, D) float32; query head h reads key head ``h // (H / kv_heads)``.
    k, v : relax.Expr
        (.., N, kv_heads, D) and (.., N, kv_heads, Dv) float32, or what `QuantizeHeads` made of
        them, int8.
    mask : relax.Expr, optional
        (T, N) bool, true where a query may look.
    causal : int
        1: query i sees the keys up to N - T + i only, N - T is the past; 0: all of them.
    scale : float
        Of the scores.
    key_levels, value_levels : int
        Largest magnitude of keys and values that come as float32.
    key_planes, value_planes : str
        How an accelerator's memory holds keys and values, as of `QuantizeHeads`.
    """

    NAME: ClassVar[str] = "attention"
    FORMS: ClassVar[tuple[tuple[str, ...], ...]] = ((), ("mask",))

    q: relax.Expr
    k: relax.Expr
    v: relax.Expr
    mask: relax.Expr | None = None
    _: KW_ONLY
    causal: int
    scale: float
    key_levels: int = 127
    value_levels: int = 127
    key_planes: str = "-"
    value_planes: str = "-"


OPS: dict[str, type[Op]] = {
    op.NAME: op
    for op in (
        Encode,
        QuantizeEncode,
        BalanceRows,
        SplitDense,
        SplitDenseScaled,
        SplitDenseEncoded,
        QuantizeHeads,
        Attention,
    )
}

encode = Encode.build
quantize_encode = QuantizeEncode.build
balance_rows = BalanceRows.build
split_dense = SplitDense.build
split_dense_scaled = SplitDenseScaled.build
split_dense_encoded = SplitDenseEncoded.build
quantize_heads = QuantizeHeads.build
attention = Attention.build


def is_single(ty: relax.TensorType) -> bool:
    """Whether a tensor of this type is known to be one number, of whatever rank."""
    if ty.shape is None:
        return False
    return all(hasattr(d, "value") and int(d) == 1 for d in ty.shape.values)


def op_name(expr: Any) -> str:
    """Name of the dialect's op that ``expr`` calls, without prefix; ``""`` for anything else."""
    if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.Op):
        return ""
    name = str(expr.op.name)
    return name[len(PREFIX) :] if name.startswith(PREFIX) else ""
