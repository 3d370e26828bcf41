"""Windows: digits of every type, centre and width, and the window that is taken by default."""

from __future__ import annotations

import numpy as np
import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import WINDOWS, default_window, window_of

WIDTHS = (2, 4, 8)


def test_the_byte_of_symmetric_int8():
    digits = WINDOWS["signed"].digits(4)
    assert (digits.bias, digits.centre, digits.zero_range) == (8, 0, (-8, 7))
    assert digits.digit_range == (-8, 8)
    # Nibble 8 is -8, and +8 where the low digit, which is stored with 8 added, is negative.
    assert (digits.ambiguous_nibble, digits.threshold) == (8, 8)
    lsb = np.arange(16, dtype=np.uint8)
    assert digits.digit(lsb, np.full(16, 8, np.uint8)).tolist() == [8] * 8 + [-8] * 8
    assert (digits.shift, digits.offset) == (0, -8)


def test_the_unsigned_window_shares_no_nibble():
    for signed, expected in ((True, (-8, 7)), (False, (0, 15))):
        digits = WINDOWS["unsigned"].digits(4, signed=signed, zero_point=5)
        assert (digits.digit_range, digits.threshold) == (expected, 0)
        # What a zero point takes off is left to the correction by column sums.
        assert (digits.bias, digits.centre, digits.shift, digits.offset) == (0, 0, -5, -5)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("k", WIDTHS)
def test_digits_fit_for_every_zero_point(k, signed):
    low = -(2 ** (2 * k - 1)) if signed else 0
    b, largest = 2 ** (k - 1), 2**k - 1
    zeros = np.arange(low, low + 2 ** (2 * k)).reshape(-1, 1)
    digits = WINDOWS["signed"].digits(k, signed=signed, zero_point=zeros)
    assert digits.fits
    # An independent count: a centre fits if no q - c reaches a digit of 2^k or -2^k.
    smallest, greatest = (low - zeros + b) // 2**k, (low + 2 ** (2 * k) - 1 - zeros + b) // 2**k
    fitting = (smallest >= -largest) & (greatest <= largest)
    np.testing.assert_array_equal(digits.shift == 0, fitting)
    if (k, signed) == (4, False):
        assert zeros[fitting].min() == 8
        assert zeros[fitting].max() == 248
    # Nibble 0 never has two meanings.
    shared = digits.threshold > 0
    assert not np.any(shared & (digits.ambiguous_nibble == 0))
    assert np.abs(digits.shift).max() == b


@pytest.mark.parametrize(
    ("k", "signed", "zero_point", "window", "reason"),
    [
        (4, True, 0, "signed", "centred on the zero point 0"),
        (4, False, 128, "signed", "centred on the zero point 128"),
        (4, False, 8, "signed", "centred on the zero point 8"),
        (4, False, 248, "signed", "centred on the zero point 248"),
        (4, False, 7, "unsigned", "its zero point 7 lies at the small end, below 8"),
        (4, False, 0, "unsigned", "small end"),
        (4, False, 249, "signed", "centred on 248, the nearest to its zero point 249"),
        (4, True, -128, "signed", "centred on -120, the nearest to its zero point -128"),
        (4, True, 127, "signed", "centred on 120"),
        (4, False, None, "signed", "comes at run time, within 8 to 248"),
        (2, False, 1, "unsigned", "below 2"),
        (8, False, 32768, "signed", "centred on the zero point 32768"),
    ],
)
def test_default_window(k, signed, zero_point, window, reason):
    found, why = default_window(k, signed=signed, zero_point=zero_point)
    assert found == window
    assert reason in why


def test_what_is_refused():
    with pytest.raises(InvalidArgumentError, match="window must be 'signed' or 'unsigned'"):
        window_of("centred")
    with pytest.raises(InvalidArgumentError, match="k must be 2, 4 or 8"):
        WINDOWS["signed"].digits(3)
    with pytest.raises(InvalidArgumentError, match="is an integer"):
        WINDOWS["signed"].digits(4, zero_point=0.0)
    with pytest.raises(InvalidArgumentError, match=r"256 is out of \[0, 255\], the unsigned"):
        WINDOWS["signed"].digits(4, signed=False, zero_point=np.array([3, 256]))
