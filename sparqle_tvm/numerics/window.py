"""Windows: which 2k-bit integers have a zero high digit, so that only the low digit is stored.

An integer q, signed or unsigned of 2k bits, becomes ``(q - centre + bias) mod 2^2k``, a bijection
of the 2k-bit values. Its low k bits are the stored low digit, its high k bits the *nibble*, which
is the high digit modulo 2^k:

    q - centre = 2^k * digit + low digit - bias

- ``signed``, bias 2^(k-1): the digit is zero for q - centre in [-bias, bias - 1]. The centre is
  the zero point of q, moved to where all digits fit a lane that takes signed and unsigned k-bit
  digits, [-(2^k - 1), 2^k - 1]: at least a bias away from both ends of the type. There nibble 0 is
  digit 0 and no other, so no stored nibble is ever 0.
- ``unsigned``, bias and centre 0: the digit is zero for q in [0, 2^k - 1].

As q - centre takes 2^2k values, there may be one more digit than nibbles: the smallest and the
largest digit, 2^k apart, share one. The low digit tells which: below a threshold it is the larger
one. For int8 and centre 0 nibble 8 is -8, and +8 where the stored low digit is below 8, which is
where the low digit itself is negative.

What is stored of a high digit is its *code*: the nibble. As digit 0 is never stored, code 0 is left
for the largest digit where that shares its nibble. So codes alone tell digits, and whoever
multiplies high digits does not look at low ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.integers import DIGIT, bounds, container, require_digit_bits

WindowName = Literal["signed", "unsigned"]


@dataclass(frozen=True)
class Window:
    """One window, whatever is split by it.

    Attributes
    ----------
    name : str
        As users write it.
    centred : bool
        Whether the zero range lies around the zero point, so that low digits have a bias.
    """

    name: WindowName
    centred: bool

    def bias(self, k: int) -> int:
        """What is added before the split; k that is not 2, 4 or 8 is an InvalidArgumentError."""
        require_digit_bits(k)
        return 1 << (k - 1) if self.centred else 0

    def digits(self, k: int, *, signed: bool = True, zero_point: Any = 0) -> Digits:
        """The arithmetic of this window for a type and a zero point, see `Digits`."""
        return Digits(self, k, signed, zero_point)


@dataclass(frozen=True, eq=False)
class Digits:
    """How a window splits the integers of one type around one zero point, or one per row.

    All that depends on the zero point is a Python int where that is one, else an int32 array of
    its shape: give it as (M, 1) to split (M, K).

    Attributes
    ----------
    window : Window
    k : {2, 4, 8}
        Bits of a digit.
    signed : bool
        Whether the integers are int8 (int16 for k = 8) or uint8 (uint16); for k = 2 they have
        4 bits.
    zero_point : int or ndarray of integers
        The integer that stands for 0.

    Raises
    ------
    InvalidArgumentError
        If k is not 2, 4 or 8, or a zero point is no integer of the type.
    """

    window: Window
    k: int
    signed: bool = True
    zero_point: Any = 0

    def __post_init__(self) -> None:
        """Check the zero point and make it an int or an int32 array."""
        low, high = bounds(self.k, self.signed)
        given = np.asarray(self.zero_point)
        if given.dtype.kind not in "iu":
            raise InvalidArgumentError(f"a zero point is an integer, got {given.tolist()}")
        if given.size and (given.min() < low or given.max() > high):
            worst = int(given.min() if given.min() < low else given.max())
            kind = "signed" if self.signed else "unsigned"
            raise InvalidArgumentError(
                f"zero point {worst} is out of [{low}, {high}], the {kind} integers of "
                f"{2 * self.k} bits"
            )
        exact = int(given) if given.ndim == 0 else given.astype(np.int32)
        object.__setattr__(self, "zero_point", exact)

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest integer of the type."""
        return bounds(self.k, self.signed)

    @property
    def bias(self) -> int:
        """What is added to q - centre before the split."""
        return self.window.bias(self.k)

    @property
    def centre_range(self) -> tuple[int, int]:
        """Smallest and largest centre with which all digits fit (`fits`)."""
        low, high = self.bounds
        return (low + self.bias, high + 1 - self.bias) if self.window.centred else (0, 0)

    @property
    def centre(self) -> Any:
        """What is taken off q: the zero point, moved into `centre_range`."""
        low, high = self.centre_range
        if isinstance(self.zero_point, int):
            return min(max(self.zero_point, low), high)
        return np.clip(self.zero_point, low, high)

    @property
    def shift(self) -> Any:
        """``centre - zero_point``: times the sum of a channel's weights, what its sums lack."""
        return self.centre - self.zero_point

    @property
    def offset(self) -> Any:
        """``shift - bias``: the same for sums over low digits as they are stored."""
        return self.shift - self.bias

    @property
    def zero_range(self) -> tuple[Any, Any]:
        """Smallest and largest q whose digit is zero."""
        first = self.centre - self.bias
        return first, first + (1 << self.k) - 1

    @property
    def smallest(self) -> Any:
        """The smallest ``q - centre + bias``; the largest is 2^2k - 1 more."""
        return self.bounds[0] - self.centre + self.bias

    @property
    def digit_range(self) -> tuple[Any, Any]:
        """Smallest and largest digit."""
        return self.smallest >> self.k, (self.smallest + (1 << 2 * self.k) - 1) >> self.k

    @property
    def ambiguous_nibble(self) -> Any:
        """The nibble of the smallest digit, which is the largest one's too if `threshold` > 0."""
        return self.digit_range[0] & ((1 << self.k) - 1)

    @property
    def threshold(self) -> Any:
        """The ambiguous nibble is the largest digit where the stored low digit is below this."""
        return self.smallest & ((1 << self.k) - 1)

    @property
    def fits(self) -> bool:
        """Whether all digits lie in [-(2^k - 1), 2^k - 1], so that nibble 0 is digit 0 alone."""
        low, high = self.digit_range
        largest = (1 << self.k) - 1
        return bool(np.all(low >= -largest) and np.all(high <= largest))

    def store(self, q: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The stored integer of every q: uint8 (uint16 for k = 8) in [0, 2^2k - 1]."""
        dtype, mask = np.dtype(container(self.k, signed=False)), (1 << 2 * self.k) - 1
        stored = q.astype(dtype) - (np.asarray(self.centre - self.bias) & mask).astype(dtype)
        return np.asarray(stored & dtype.type(mask) if self.k == 2 else stored)

    def digit(self, lsb: npt.NDArray[Any], nibble: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The high digits of stored low digits and nibbles, both in [0, 2^k - 1].

        They are int8, int16 for k = 8.
        """
        dtype = np.dtype(DIGIT[self.k])
        first = np.asarray(self.digit_range[0], dtype)
        above_first = (nibble.astype(dtype) - first) & dtype.type((1 << self.k) - 1)
        digits = above_first + first
        if np.any(self.threshold):
            wrapped = (above_first == 0) & (lsb < np.asarray(self.threshold, lsb.dtype))
            digits += wrapped.astype(dtype) << dtype.type(self.k)
        return np.asarray(digits)

    def code(self, digit: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """What is stored of high digits that are not zero."""
        nibble = (digit & ((1 << self.k) - 1)).astype(np.uint8)
        if not np.any(self.threshold):
            return nibble
        shared = (digit == self.digit_range[1]) & np.asarray(self.threshold > 0)
        return np.where(shared, np.uint8(0), nibble)

    def decode(self, code: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The high digits of codes: int8, int16 for k = 8."""
        dtype = np.dtype(DIGIT[self.k])
        first, last = (np.asarray(edge, dtype) for edge in self.digit_range)
        digits = ((code.astype(dtype) - first) & dtype.type((1 << self.k) - 1)) + first
        return np.where(code == 0, last, digits)

    def read(self, lsb: npt.NDArray[Any], digit: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The integers q of stored low digits and high digits, of the type's dtype."""
        wide = np.dtype(np.int32 if self.k == 8 else np.int16)
        stored = (digit.astype(wide) << wide.type(self.k)) + lsb
        q = stored + np.asarray(self.centre - self.bias, wide)
        return np.asarray(q.astype(container(self.k, self.signed)))


WINDOWS: dict[str, Window] = {
    each.name: each for each in (Window("signed", centred=True), Window("unsigned", centred=False))
}
# Its low digits are stored as they are: the form of dense activations.
PLAIN: WindowName = "unsigned"


def window_of(name: str) -> Window:
    """The window of a name; InvalidArgumentError if there is none."""
    if name not in WINDOWS:
        known = " or ".join(f"'{known}'" for known in WINDOWS)
        raise InvalidArgumentError(f"window must be {known}, got {name!r}")
    return WINDOWS[name]


def default_window(
    k: int, *, signed: bool = True, zero_point: int | None = 0, smallest: float = -math.inf
) -> tuple[WindowName, str]:
    """The window to take where nothing was measured, and why, in a few words.

    It is the centred one where its digits fit around the zero point. Where they do not, its centre
    moves; if that gives it the zero range of the unsigned window (values behind a ReLU, as uint8),
    the unsigned one has the smaller correction, none for zero point 0. Nor are values that are
    never below the zero point 0 wider than its zero range on one side.

    Parameters
    ----------
    k, signed
        As of `Digits`.
    zero_point : int or None
        The zero point; None: it is known at run time only, maybe another for each row.
    smallest : float
        What no value is below, whatever the data, if that is more than the type says.
    """
    centred = WINDOWS["signed"].digits(k, signed=signed, zero_point=zero_point or 0)
    low, high = centred.centre_range
    if zero_point is None:
        return "signed", f"centred on the zero point that comes at run time, within {low} to {high}"
    if zero_point == 0 and smallest >= 0:
        return PLAIN, "never negative, zero point 0"
    if not centred.shift:
        return "signed", f"centred on the zero point {zero_point}"
    if centred.zero_range == WINDOWS[PLAIN].digits(k, signed=signed).zero_range:
        return PLAIN, f"its zero point {zero_point} lies at the small end, below {low}"
    moved = centred.centre
    return "signed", f"centred on {moved}, the nearest to its zero point {zero_point} that fits"


def largest_integer(k: int) -> int:
    """Largest signed integer of 2k bits."""
    return bounds(k)[1]
