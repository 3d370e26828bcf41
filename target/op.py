"""One dense op: what distinguishes it, for kernels, programs and cost formulas alike."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.integers import DIGIT_BITS, bounds, container
from sparqle_tvm.numerics.requantize import GRID_LIMIT
from sparqle_tvm.numerics.window import PLAIN, WINDOWS, Digits, WindowName

ProgramScheme = Literal["sparqle", "dense"]
"""``sparqle``: LSB plane, bitmap and compressed MSB plane. ``dense``: two dense passes.

Other baselines exist as formulas only, see `sparqle_tvm.target.cost.baselines`.
"""

SCHEMES: tuple[ProgramScheme, ...] = ("sparqle", "dense")
"""Schemes that programs exist for."""

Output = Literal["int32", "float32", "encoded"]
"""What a dense op makes of its sums."""

_SIZE_LIMIT = 2**31
_MID = ("mid_zero", "mid_low", "mid_high")


@dataclass(frozen=True)
class DenseOp:
    """One dense op: (m, k) quantized activations times (n, k) integer weights.

    Attributes
    ----------
    m : int
        Rows (tokens); of a program the most that it can be bound to.
    n, k : int
        Output channels (N), input features (K).
    weight_bits : {2, 4, 8}
        Bits of a stored weight.
    group_size : int
        Weights along K that share a scale; 0: one scale per channel.
    scale_bytes : {2, 4}
        Bytes of a group's scale, and of its minimum: float16, or float32 where they are products
        of a float16 and an integer (the K-quants of GGUF).
    has_min : bool
        The groups have a minimum besides the scale (GGUF ``Q4_1``); needs group sums.
    label : str
        Name for listings and reports; ops that differ in nothing else are equal.
    has_offset : bool
        There is a constant per channel (a bias) that the drain adds: int32, float64 with groups.
    weight_signed : bool
        Whether weights are stored in two's complement.
    digit_bits : {2, 4, 8}
        Width of a digit; activations have twice as many bits.
    scheme : {"sparqle", "dense"}
        Planes and bitmap, or as a baseline activations of two digits as they are.
    act_signed : bool
        Whether activations are signed integers of two digits (int8) or unsigned ones (uint8).
    window : {"signed", "unsigned"}
        What the digits stand for: those of ``signed`` are centred, stored LSB digits have their top
        bit flipped. The op multiplies what digits stand for, so the window needs no offset. `dense`
        has ``unsigned``.
    centre : int
        Digits of ``signed`` carry q - centre: the zero point. Those of ``unsigned`` carry q, and
        have centre 0; a zero point is then part of the offset.
    row_zeros : bool
        Every row has a zero point of its own, given at run time: its digits carry q less the centre
        that `Digits` makes of it (`centre` is 0).
    adds_shift : bool
        With `row_zeros` only: the drain adds what centres differ from zero points by, times the sum
        of the channel's weights, so that the op multiplies q - zero point. Else it is q - centre,
        and whoever wants the rest adds it.
    block_rows : int
        Rows that the encoding sorted together: activations lie in that order in memory, stores put
        rows back in their places. 0: rows are in their own order. Only with scheme ``sparqle`` and
        float32 outputs.
    output : {"int32", "float32", "encoded"}
        ``int32``: the exact sum, without scales and groups. ``encoded``: the float32 quantized with
        a static scale, as integers of `digit_bits` twice; the hardware stores them as planes.
    out_chunk : int
        ``encoded`` only: output channels that the MSB stream keeps together, the K chunk of the
        programs that read it.
    out_signed, out_window, out_centre
        ``encoded`` only: type, window and centre of the outputs, as of activations.
    out_zero, out_low, out_high : int
        ``encoded`` only: zero point and limits of the quantized outputs.
    has_bias : bool
        ``encoded`` only: the drain adds a float32 per channel to the scaled sums before it
        quantizes them (`numerics.requantize`).
    mid_zero, mid_low, mid_high : int
        ``encoded`` only: zero point and limits of the grid that the scaled sums are brought onto
        before the bias is added; equal limits: there is none.

    Raises
    ------
    InvalidArgumentError
        If a field has the wrong type or value, or fields do not agree.
    """

    m: int
    n: int
    k: int
    weight_bits: int = 4
    group_size: int = 0
    has_min: bool = False
    label: str = field(default="", compare=False)
    has_offset: bool = False
    weight_signed: bool = True
    digit_bits: int = 4
    scheme: ProgramScheme = "sparqle"
    act_signed: bool = True
    window: WindowName = "signed"
    centre: int = 0
    row_zeros: bool = False
    adds_shift: bool = False
    scale_bytes: int = 2
    block_rows: int = 0
    output: Output = "float32"
    out_chunk: int = 0
    out_signed: bool = True
    out_window: WindowName = "unsigned"
    out_centre: int = 0
    out_zero: int = 0
    out_low: int = 0
    out_high: int = 0
    has_bias: bool = False
    mid_zero: int = 0
    mid_low: int = 0
    mid_high: int = 0

    def __post_init__(self) -> None:
        """Refuse what does not hold together."""
        problem = self._type_problem() or self._contradiction() or self._encoding_problem()
        if problem:
            name = f" {self.label!r}" if self.label else ""
            raise InvalidArgumentError(
                f"dense op{name} of {self.m} x {self.n} x {self.k}: {problem}"
            )

    def _type_problem(self) -> str:
        choices: dict[str, tuple[Any, ...]] = {
            "scheme": SCHEMES,
            "window": get_args(WindowName),
            "output": get_args(Output),
            "out_window": get_args(WindowName),
            "weight_bits": DIGIT_BITS,
            "digit_bits": DIGIT_BITS,
            "scale_bytes": (2, 4),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                return f"{name} = {getattr(self, name)!r} must be one of {known}"
        flags = ("weight_signed", "has_min", "has_offset", "act_signed", "out_signed")
        for name in (*flags, "row_zeros", "adds_shift", "has_bias"):
            if not isinstance(getattr(self, name), bool):
                return f"{name} must be true or false"
        lowest = dict.fromkeys(("m", "n", "k"), 1)
        lowest |= dict.fromkeys(("group_size", "block_rows", "out_chunk"), 0)
        anywhere = ("centre", "out_centre", "out_zero", "out_low", "out_high", *_MID)
        lowest |= dict.fromkeys(anywhere, -_SIZE_LIMIT)
        for name, low in lowest.items():
            if not is_whole(getattr(self, name), low, _SIZE_LIMIT):
                limits = f"from {low} to {_SIZE_LIMIT - 1}"
                return f"{name} = {getattr(self, name)!r} must be a whole number {limits}"
        label: Any = self.label
        return "" if isinstance(label, str) else "label must be a text"

    def _contradiction(self) -> str:
        if self.has_min and not self.group_size:
            return "minima need groups; set group_size"
        if self.scale_bytes != 2 and not self.group_size:
            return "scale_bytes is of the scales of groups; set group_size"
        if self.group_size and self.output == "int32":
            return "int32 outputs cannot have groups; group scales need output 'float32'"
        if self.scheme == "dense" and WINDOWS[self.window].centred:
            return f"window '{self.window}' needs scheme 'sparqle': dense has no biased digits"
        if self.block_rows and (self.scheme == "dense" or self.output != "float32"):
            return "sorted rows need scheme 'sparqle' and output 'float32'"
        if self.adds_shift and not self.row_zeros:
            return "only rows with zero points of their own have a shift to add"
        if self.row_zeros:
            return "rows with zero points have no common centre" if self.centre else ""
        return self._centre_problem("centre", self.act_signed, self.window)

    def _encoding_problem(self) -> str:
        low, high = self.out_low, self.out_high
        if self.output != "encoded":
            numbers = (self.out_chunk, self.out_centre, self.out_zero, low, high, self.has_bias)
            numbers += tuple(getattr(self, name) for name in _MID)
            plain = self.out_window == PLAIN and self.out_signed and not any(numbers)
            return "" if plain else "only encoded outputs have a format"
        smallest, largest = bounds(self.digit_bits, self.out_signed)
        if not smallest <= low <= high <= largest:
            return f"limits [{low}, {high}] of the outputs must lie in [{smallest}, {largest}]"
        if not smallest <= self.out_zero <= largest:
            return f"out_zero = {self.out_zero} must lie in [{smallest}, {largest}]"
        mid = (self.mid_low, self.mid_zero, self.mid_high)
        if max(map(abs, mid)) > GRID_LIMIT or self.mid_low > self.mid_high:
            return f"limits [{self.mid_low}, {self.mid_high}] of the sums' grid are none"
        return self._centre_problem("out_centre", self.out_signed, self.out_window)

    def _centre_problem(self, name: str, signed: bool, window: str) -> str:
        """Why digits of a window with that centre do not fit k + 1 bits, "" if they do."""
        centre: int = getattr(self, name)
        smallest, largest = WINDOWS[window].digits(self.digit_bits, signed=signed).centre_range
        if smallest <= centre <= largest:
            return ""
        return f"{name} = {centre} must lie in [{smallest}, {largest}] with window '{window}'"

    @property
    def macs(self) -> int:
        """Multiply-accumulates at full precision."""
        return self.m * self.n * self.k

    @property
    def weight_slices(self) -> int:
        """Slices of `digit_bits` bits that a weight needs; each is one more pass."""
        return -(-self.weight_bits // self.digit_bits)

    @property
    def groups(self) -> int:
        """Weight groups along K, 0 without."""
        return -(-self.k // self.group_size) if self.group_size else 0

    @property
    def sum_group_size(self) -> int:
        """Activations of a row that share a sum, which minima need; 0: no sums."""
        return self.group_size if self.has_min else 0

    @property
    def digits(self) -> Digits:
        """How activations are split."""
        window = WINDOWS[self.window]
        return window.digits(self.digit_bits, signed=self.act_signed, zero_point=self.centre)

    @property
    def edge(self) -> int:
        """What ``(q - centre + bias) mod 2^2k`` is for the smallest activation, or 2^2k for 0.

        Below it digits are 0 or more, from it on negative. With `row_centres` it is that of a row
        with centre 0, and as much less in any other as that one's centre is more.
        """
        return _edge(self.digits, self.centre)

    @property
    def turn(self) -> int:
        """The code of the smallest MSB digit, from which on codes are negative digits."""
        return self.edge >> self.digit_bits

    @property
    def row_centres(self) -> bool:
        """Whether the digits of every row have a centre of their own."""
        return self.row_zeros and WINDOWS[self.window].centred

    @property
    def zero_bytes(self) -> int:
        """Bytes of the zero point of a row; 0: it has none."""
        return self.row_zeros * (2 if self.digit_bits == 8 else 1)

    @property
    def shift_bytes(self) -> int:
        """Bytes that the drain needs of a row to add its shift: the zero point."""
        return self.zero_bytes * self.adds_shift

    @property
    def out_shift(self) -> int:
        """What is added to quantized outputs before they are cut into digits."""
        return WINDOWS[self.out_window].bias(self.digit_bits) - self.out_centre

    @property
    def out_edge(self) -> int:
        """The `edge` of encoded outputs."""
        window = WINDOWS[self.out_window]
        return _edge(window.digits(self.digit_bits, signed=self.out_signed), self.out_centre)

    def in_scheme(self, scheme: ProgramScheme) -> DenseOp:
        """The op as a scheme computes it; `dense` multiplies activations as they are."""
        if scheme == "sparqle":
            return replace(self, scheme=scheme)
        # Without digits that have centres, zero points matter to the drain alone.
        zeros = self.row_zeros and self.adds_shift
        return replace(self, scheme=scheme, window=PLAIN, centre=0, row_zeros=zeros)

    @property
    def scaled(self) -> bool:
        """Whether the drain makes floats, by scales of rows and channels."""
        return self.output != "int32"

    @property
    def has_mid(self) -> bool:
        """Whether scaled sums are brought onto a grid before the bias is added."""
        return self.mid_low < self.mid_high

    @property
    def drain_operations(self) -> int:
        """Float operations of the drain on an output besides its scales.

        Of encoded outputs the division by their scale, the sum with a bias, and of a grid before
        that the division by its step and the product with it.
        """
        return (self.output == "encoded") + self.has_bias + 2 * self.has_mid

    @property
    def accumulator_dtype(self) -> str:
        """``int32``, or ``float64`` where scaled group sums are added."""
        return "float64" if self.group_size else "int32"

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of an accumulator: int32, or exact 64 bits with groups."""
        return 8 if self.group_size else 4

    @property
    def group_parameter_bytes(self) -> int:
        """Bytes of a weight group's scale and minimum, as far as there are any."""
        return self.scale_bytes * (1 + self.has_min) if self.group_size else 0

    @property
    def group_dtype(self) -> str:
        """Type of the scale and the minimum of a weight group."""
        return f"float{8 * self.scale_bytes}"

    @property
    def channel_parameter_bytes(self) -> int:
        """Bytes that the drain needs of an output channel; 0: it needs none.

        A float32 scale if there are no groups, an offset, with `adds_shift` the sum of its weights
        (those two are int32, float64 with groups), and with `has_bias` a float32.
        """
        own = self.accumulator_bytes * (self.has_offset + self.adds_shift)
        return own + 4 * (self.scaled and not self.group_size) + 4 * self.has_bias

    @property
    def out_dtype(self) -> str:
        """Type of an element of the result; of encoded outputs that of the quantized integers."""
        if self.output != "encoded":
            return self.output
        return container(self.digit_bits, self.out_signed)

    @property
    def act_dtype(self) -> str:
        """Type of an activation: int8 or uint8, int16 or uint16 for digits of 8 bits."""
        return container(self.digit_bits, self.act_signed)


def _edge(digits: Digits, centre: int) -> int:
    return digits.bounds[1] + 1 - centre + digits.bias


def group_sum_bytes(group_size: int, digit_bits: int) -> int:
    """Bytes of the sum of a group of q - zero point: int16, or int32 where that is too small.

    The difference of two int8, or of two uint8, has a magnitude of at most 255: 128 of them fit.
    """
    return 2 if group_size <= 128 and digit_bits < 8 else 4


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether a value is an integer, no bool, in [low, high)."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < high
