"""Windows: which 2k-bit integers have a zero high digit, so that only the low digit is stored.

A signed 2k-bit integer is ``q = 2^k * msb + digit`` with a k-bit signed `msb`. A window adds its
bias b before it splits: ``lsb = (q + b) & (2^k - 1)`` is stored, ``msb = (q + b) >> k``. So `msb`
is zero for q in [-b, 2^k - 1 - b], and q is exact up to 2^(2k-1) - 1 - b.

- ``unsigned``, b = 0: zero for q in [0, 2^k - 1]; every q is exact.
- ``signed``, b = 2^(k-1): zero for q in [-b, b - 1]; exact up to 119 for k = 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.integers import require_digit_bits

WindowName = Literal["signed", "unsigned"]


@dataclass(frozen=True)
class Window:
    """One window; digits have k = 2, 4 or 8 bits, any other k is an InvalidArgumentError.

    Attributes
    ----------
    name : str
        As users write it.
    centred : bool
        Whether the zero range lies around 0, so that low digits are stored with a bias.
    """

    name: WindowName
    centred: bool

    def bias(self, k: int) -> int:
        """What is added before the split."""
        require_digit_bits(k)
        return 1 << (k - 1) if self.centred else 0

    def zero_range(self, k: int) -> tuple[int, int]:
        """Smallest and largest q whose high digit is zero."""
        return -self.bias(k), (1 << k) - 1 - self.bias(k)

    def limits(self, k: int) -> tuple[int, int]:
        """Smallest and largest q that is represented exactly."""
        bias = self.bias(k)
        return -(1 << (2 * k - 1)), (1 << (2 * k - 1)) - 1 - bias

    def holds(self, bounds: tuple[float, float], k: int) -> bool:
        """Whether all values within bounds are represented exactly, if they have 2k bits."""
        return bounds[1] <= self.limits(k)[1]


# The first that is exact is taken where nothing else is known.
WINDOWS: dict[str, Window] = {
    each.name: each for each in (Window("signed", centred=True), Window("unsigned", centred=False))
}
# Holds every q, and its low digits are stored as they are: the form of dense activations.
PLAIN: WindowName = "unsigned"


def window_of(name: str) -> Window:
    """The window of a name; InvalidArgumentError if there is none."""
    if name not in WINDOWS:
        known = " or ".join(f"'{known}'" for known in WINDOWS)
        raise InvalidArgumentError(f"window must be {known}, got {name!r}")
    return WINDOWS[name]


def exact_window(bounds: tuple[float, float], k: int) -> str:
    """Name of the first window that represents all values within bounds exactly."""
    return next(w.name for w in WINDOWS.values() if w.name == PLAIN or w.holds(bounds, k))


def largest_integer(k: int) -> int:
    """Largest signed integer of 2k bits."""
    return (1 << (2 * k - 1)) - 1
