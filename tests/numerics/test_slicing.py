"""The planes: identity, golden bytes, counts, and the split dot product."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError
from sparqle_tvm.numerics import (
    SlicedTensor,
    bias_term,
    dot,
    encode,
    encode_digits,
    int_matmul,
    pack_digits,
)

FORMATS = [(k, window) for k in (2, 4, 8) for window in ("signed", "unsigned")]


def container(k: int, signed: bool = True) -> type:
    narrow, wide = (np.int8, np.int16) if signed else (np.uint8, np.uint16)
    return wide if k == 8 else narrow


def limits(k: int, signed: bool = True) -> tuple[int, int]:
    low = -(2 ** (2 * k - 1)) if signed else 0
    return low, low + 2 ** (2 * k) - 1


@st.composite
def exact_matrices(draw, k: int, signed: bool = True, zero: int = 0, min_rows: int = 0):
    """Random integers of a type, as often close to the zero point as anywhere."""
    shape = (draw(st.integers(min_rows, 5)), draw(st.integers(1, 40)))
    low, high = limits(k, signed)
    b = 2 ** (k - 1)
    near = st.integers(max(low, zero - b), min(high, zero + b - 1))
    elements = st.one_of(st.integers(low, high), near, st.just(zero))
    return draw(hnp.arrays(container(k, signed), shape, elements=elements))


def all_values(k: int, signed: bool) -> np.ndarray:
    """Every integer of a type, one row."""
    low, high = limits(k, signed)
    return np.arange(low, high + 1).astype(container(k, signed)).reshape(1, -1)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("k", "window"), FORMATS)
def test_every_value_survives_with_every_zero_point(k, window, signed):
    q = all_values(k, signed)
    low, high = limits(k, signed)
    # All 16 or 256 of them; 16 for k = 8, the ends and their neighbours among them.
    b = 2 ** (k - 1)
    some = np.linspace(low + b + 1, high - b - 1, 8).astype(int)
    ends = (low, low + 1, low + b - 1, low + b, high, high - 1, high + 1 - b, high + 2 - b)
    zeros = [*some, *ends] if k == 8 else range(low, high + 1)
    for zero in map(int, zeros):
        sliced = encode(q, k=k, window=window, zero_point=zero)
        decoded = sliced.decode()
        assert decoded.dtype == q.dtype
        np.testing.assert_array_equal(decoded, q)
        # The window is 2^k values wide, so that many elements have no MSB digit.
        mask = sliced.mask()[0]
        assert mask.size - np.count_nonzero(mask) == 2**k
        if window == "signed":
            # They lie around the zero point, which is one of them unless it is at an end.
            centre = min(max(zero, low + b), high + 1 - b)
            inside = np.abs(q[0].astype(np.int64) - centre + 0.5) < b
            np.testing.assert_array_equal(mask, ~inside)
        msb = sliced.msb_digits()
        assert -(2**k) < msb.min() <= msb.max() < 2**k


def test_rows_have_zero_points_of_their_own():
    for signed in (True, False):
        zeros = all_values(4, signed)[0].astype(np.int32)
        q = np.repeat(all_values(4, signed), zeros.size, axis=0)
        for window in ("signed", "unsigned"):
            sliced = encode(q, window=window, zero_point=zeros)
            np.testing.assert_array_equal(sliced.decode(), q)
            for row in (0, 3, 100, 255):
                alone = encode(q[row : row + 1], window=window, zero_point=int(zeros[row]))
                np.testing.assert_array_equal(sliced.mask()[row], alone.mask()[0])
                np.testing.assert_array_equal(sliced.lsb[row], alone.lsb[0])


@pytest.mark.parametrize(("k", "window"), FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_decode_undoes_encode(k, window, data):
    signed = data.draw(st.booleans())
    zero = data.draw(st.integers(*limits(k, signed)))
    q = data.draw(exact_matrices(k, signed, zero))
    sliced = encode(q, k=k, window=window, zero_point=zero)
    np.testing.assert_array_equal(sliced.decode(), q)
    lsb, msb = encode_digits(q, k, window, zero_point=zero)
    np.testing.assert_array_equal(sliced.mask(), msb != 0)
    np.testing.assert_array_equal(sliced.msb_digits(), msb)
    digits = sliced.digits
    rebuilt = (msb.astype(np.int64) << k) + lsb - digits.bias + digits.centre
    np.testing.assert_array_equal(rebuilt, q)
    again = SlicedTensor.from_planes(
        sliced.lsb,
        sliced.pbm,
        np.concatenate([sliced.msb, np.full(3, 255, np.uint8)]),  # a buffer with room to spare
        sliced.row_ptr,
        shape=q.shape,
        k=k,
        window=window,
        signed=signed,
        zero_point=zero,
    )
    np.testing.assert_array_equal(again.decode(), q)
    assert again.nbytes == sliced.nbytes


@pytest.mark.parametrize(("k", "window"), FORMATS)
@pytest.mark.parametrize("weight_range", [(-8, 7), (0, 15), (-128, 127), (-1, 1)])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_split_dot_is_the_integer_product(k, window, weight_range, data):
    signed = data.draw(st.booleans())
    one = st.integers(*limits(k, signed))
    q = data.draw(exact_matrices(k, signed, data.draw(one)))
    zero = data.draw(st.one_of(one, hnp.arrays(np.int32, len(q), elements=one)))
    w = data.draw(
        hnp.arrays(
            np.int8,
            (data.draw(st.integers(1, 6)), q.shape[1]),
            elements=st.integers(*weight_range),
        )
    )
    product = dot(encode(q, k=k, window=window, zero_point=zero), w)
    assert product.dtype == np.int32
    centred = q.astype(np.int64) - np.reshape(zero, (-1, 1))
    np.testing.assert_array_equal(product, centred @ w.astype(np.int64).T)


def test_golden_planes_signed():
    # k = 4, b = 8: (q + 8) = 16 * msb + lsb
    #   q     3   -9    0  100   -8 |    0   7  -8  1  2
    #   q+8  11   -1    8  108    0 |    8  15   0  9 10
    #   lsb   b    f    8    c    0 |    8   f   0  9  a
    #   msb   0   -1    0    6    0 |    0   0   0  0  0
    q = np.array([[3, -9, 0, 100, -8], [0, 7, -8, 1, 2]], dtype=np.int8)
    sliced = encode(q)
    # Element 2i in the low half: (3, -9) -> fb, (0, 100) -> c8, (-8) -> 00.
    assert sliced.lsb.tobytes().hex() == "fbc800" + "f8900a"
    # Columns 1 and 3 of row 0: bits 1 and 3 -> 0b01010.
    assert sliced.pbm.tobytes().hex() == "0a" + "00"
    # -1 is f in two's complement, 6 follows in the high half -> 6f; row 1 stores nothing.
    assert sliced.msb.tobytes().hex() == "6f"
    assert sliced.row_ptr.tolist() == [0, 1, 1]
    assert sliced.row_nnz().tolist() == [2, 0]
    assert sliced.msb_sparsity == 1 - 2 / 10
    # lsb 2 * 3, bitmap 2 * 1, msb 1, pointers 3 * 4 bytes.
    assert sliced.nbytes == 6 + 2 + 1 + 12


def test_golden_planes_of_the_shared_nibble():
    # k = 4, b = 8: (q + 8) mod 256 = 16 * nibble + lsb; nibble 8 is -8, or +8 where lsb < 8
    #   q      120 127 -128 -121 119
    #   q+8    128 135 -120 -113 127
    #   lsb      0   7    8    f   f
    #   nibble   8   8    8    8   7
    #   msb      8   8   -8   -8   7
    #   code     0   0    8    8   7   (0 is free for the larger of the two, as digit 0 has none)
    q = np.array([[120, 127, -128, -121, 119]], dtype=np.int8)
    sliced = encode(q)
    assert sliced.lsb.tobytes().hex() == "70f80f"
    assert sliced.pbm.tobytes().hex() == "1f"
    assert sliced.msb.tobytes().hex() == "008807"
    assert sliced.msb_digits().tolist() == [[8, 8, -8, -8, 7]]
    np.testing.assert_array_equal(sliced.decode(), q)


def test_golden_planes_of_uint8_around_a_zero_point():
    # k = 4, b = 8, zero point 100: (q - 100 + 8) mod 256 = 16 * nibble + lsb
    #   q        100   92  107   91    0  255  251  252
    #   q-92       8    0   15   -1  -92  163  159  160
    #   lsb        8    0    f    f    4    3    f    0
    #   nibble     0    0    0    f    a    a    9    a
    # Digits reach from -92 >> 4 = -6 to 163 >> 4 = 10: nibble a is -6 where lsb >= 4, else 10.
    #   msb        0    0    0   -1   -6   10    9   10
    #   code                      f    a    0    9    0
    q = np.array([[100, 92, 107, 91, 0, 255, 251, 252]], dtype=np.uint8)
    sliced = encode(q, zero_point=100)
    assert sliced.lsb.tobytes().hex() == "08ff340f"
    assert sliced.pbm.tobytes().hex() == "f8"
    assert sliced.msb.tobytes().hex() == "af9000"
    assert sliced.msb_digits().tolist() == [[0, 0, 0, -1, -6, 10, 9, 10]]
    np.testing.assert_array_equal(sliced.decode(), q)


def test_golden_planes_unsigned_two_bits():
    # k = 2: q = 4 * msb + lsb, msb in [-2, 1]
    #   q    -8  -1   0   3   4   7   1   2 |  -3
    #   lsb   0   3   0   3   0   3   1   2 |   1
    #   msb  -2  -1   0   0   1   1   0   0 |  -1
    q = np.array([[-8, -1, 0, 3, 4, 7, 1, 2, -3]], dtype=np.int8)
    sliced = encode(q, k=2, window="unsigned")
    # 0b11001100, 0b10011100, 0b01
    assert sliced.lsb.tobytes().hex() == "cc9c01"
    # Columns 0, 1, 4, 5 -> 0b00110011; column 8 -> bit 0 of the next byte.
    assert sliced.pbm.tobytes().hex() == "3301"
    # Digits 10 11 01 01 11 -> 0b01011110, then 0b11 padded.
    assert sliced.msb.tobytes().hex() == "5e03"
    assert sliced.row_ptr.tolist() == [0, 2]


def test_rows_are_padded_each():
    # Three stored digits in row 0 (2 bytes), one in row 1 (1 byte), none in row 2, two in row 3.
    q = np.array([[16, 32, 48], [0, 64, 0], [0, 0, 0], [-16, 0, 16]], dtype=np.int8)
    sliced = encode(q, window="unsigned")
    assert sliced.row_ptr.tolist() == [0, 2, 3, 3, 4]
    assert sliced.msb.tobytes().hex() == "2103" + "04" + "1f"
    np.testing.assert_array_equal(sliced.decode(), q)


@pytest.mark.parametrize(("k", "window"), FORMATS)
def test_extreme_shapes(k, window):
    empty = encode(np.zeros((0, 7), container(k)), k=k, window=window)
    assert empty.decode().shape == (0, 7)
    assert empty.row_ptr.tolist() == [0]
    assert empty.nbytes == 4
    assert empty.msb_sparsity == 1.0
    assert empty.group_sums(7).shape == (0, 1)
    assert dot(empty, np.ones((3, 7), np.int8)).shape == (0, 3)

    zeros = encode(np.zeros((3, 9), container(k)), k=k, window=window)
    assert zeros.msb.size == 0
    assert zeros.msb_sparsity == 1.0
    assert not zeros.decode().any()

    lowest = np.full((1, 9), -(2 ** (2 * k - 1)), container(k))
    dense = encode(lowest, k=k, window=window)
    assert dense.msb_sparsity == 0.0
    assert dense.msb.size == dense.lsb.size
    np.testing.assert_array_equal(dense.decode(), lowest)


def test_group_sums():
    q = np.arange(-12, 12, dtype=np.int8).reshape(2, 12)
    sums = encode(q).group_sums(4)
    assert sums.dtype == np.int32
    assert sums.tolist() == [[-42, -26, -10], [6, 22, 38]]
    # They are those of what the integers stand for.
    assert encode(q, zero_point=-1).group_sums(12).tolist() == [[-66], [78]]
    with pytest.raises(InvalidArgumentError, match="K = 12 is not a multiple of group_size 5"):
        encode(q).group_sums(5)


def test_bias_term():
    w = np.array([[1, -2, 7], [0, 0, 0]], dtype=np.int8)
    assert bias_term(w, 4, "signed").tolist() == [-48, 0]
    assert bias_term(w, 4, "unsigned").tolist() == [0, 0]
    # Around 100 nothing is to be corrected; 248 is the largest centre, 7 below the zero point.
    assert bias_term(w, 4, "signed", signed=False, zero_point=100).tolist() == [-48, 0]
    assert bias_term(w, 4, "signed", signed=False, zero_point=255).tolist() == [-90, 0]
    assert bias_term(w, 4, "unsigned", signed=False, zero_point=100).tolist() == [-600, 0]


@pytest.mark.parametrize(
    ("q", "options", "message"),
    [
        (np.zeros((2, 0), np.int8), {}, "K = 0"),
        (np.zeros(4, np.int8), {}, "expected a matrix"),
        (np.zeros((1, 2, 3), np.int8), {}, "flatten leading"),
        (np.zeros((2, 4), np.int16), {}, "expected dtype int8"),
        (np.zeros((2, 4), np.float32), {}, "expected dtype int8"),
        (np.zeros((2, 4), np.int8), {"k": 8}, "expected dtype int16"),
        ([[1, 2]], {}, "expected a NumPy array, got list"),
        (np.array([[0, 8]], np.int8), {"k": 2}, r"value 8 at \[0, 1\] is out of \[-8, 7\]"),
        (np.array([[0, 16]], np.uint8), {"k": 2}, r"value 16 at \[0, 1\] is out of \[0, 15\]"),
        (np.zeros((2, 4), np.int8), {"zero_point": 128}, r"128 is out of \[-128, 127\]"),
        (np.zeros((2, 4), np.uint8), {"zero_point": -1}, r"-1 is out of \[0, 255\]"),
        (np.zeros((2, 4), np.uint8), {"zero_point": 0.5}, "is an integer, got 0.5"),
        (np.zeros((2, 4), np.uint8), {"zero_point": [1, 2, 3]}, "one for each of 2 rows"),
        (np.zeros((2, 4), np.int8), {"k": 3}, "k must be 2, 4 or 8"),
        (np.zeros((2, 4), np.int8), {"k": 4.0}, "k must be 2, 4 or 8"),
        (np.zeros((2, 4), np.int8), {"window": "centred"}, "window must be"),
    ],
)
def test_encode_refuses(q, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        encode(q, **options)


def test_dot_refuses_what_does_not_fit():
    sliced = encode(np.ones((2, 4), np.int8))
    with pytest.raises(QuantizationError, match="differ in K"):
        dot(sliced, np.ones((3, 5), np.int8))
    with pytest.raises(QuantizationError, match="expected dtype int8"):
        dot(sliced, np.ones((3, 4), np.int32))
    # 600 * 32767 * 127 exceeds 2^31, and is found whichever way it is summed.
    large = encode(np.full((1, 600), 32767, np.int16), k=8, window="unsigned")
    with pytest.raises(QuantizationError, match="does not fit the int32 accumulator"):
        dot(large, np.full((1, 600), 127, np.int8))


def test_int_matmul_is_exact_beyond_float32():
    rng = np.random.default_rng(3)
    q = rng.integers(-128, 128, (3, 5000), dtype=np.int8)
    w = rng.integers(-128, 128, (4, 5000), dtype=np.int8)
    q[0] = w[0] = -128  # 5000 * 2^14 is above 2^24
    product = int_matmul(q, w)
    np.testing.assert_array_equal(product, q.astype(np.int64) @ w.astype(np.int64).T)
    assert product[0, 0] == 5000 * 2**14


def _planes() -> SlicedTensor:
    return encode(np.array([[3, -9, 0, 100, -128], [0, 7, -8, 1, 64]], dtype=np.int8))


def _rebuild(sliced: SlicedTensor) -> SlicedTensor:
    return SlicedTensor.from_planes(
        sliced.lsb,
        sliced.pbm,
        sliced.msb,
        sliced.row_ptr,
        shape=sliced.shape,
        k=sliced.k,
        window=sliced.window,
    )


def _with_byte(plane: np.ndarray, index: tuple[int, ...] | int, value: int) -> np.ndarray:
    changed = plane.copy()
    changed[index] = value
    return changed


def test_from_planes_refuses_inconsistent_planes():
    good = _planes()
    _rebuild(good)
    # Digits -1, 6, -8 of row 0 and 4 of row 1: bytes 6f 08 | 04.
    assert good.msb.tobytes().hex() == "6f0804"
    wrong = {
        "row_ptr must start at 0": {"row_ptr": np.array([1, 2, 3], np.int32)},
        "never fall": {"row_ptr": np.array([0, 3, 2], np.int32)},
        "has only 3": {"row_ptr": np.array([0, 2, 9], np.int32)},
        "row 0: row_ptr gives 1 bytes": {"row_ptr": np.array([0, 1, 3], np.int32)},
        "lsb: bits are set behind column 4": {"lsb": _with_byte(good.lsb, (0, 2), 0xF8)},
        "pbm: bits are set behind column 4": {"pbm": _with_byte(good.pbm, (1, 0), 0x30)},
        "set in the padding": {"msb": _with_byte(good.msb, 1, 0x18)},
        "stored digit is zero": {"msb": _with_byte(good.msb, 0, 0x60), "window": "unsigned"},
    }
    for message, change in wrong.items():
        with pytest.raises(QuantizationError, match=message):
            _rebuild(replace(good, **change))
    malformed = {
        "lsb: expected shape": {"lsb": good.lsb[:, :2]},
        "pbm: expected a NumPy array of uint8": {"pbm": good.pbm.astype(np.int8)},
        "msb: expected shape": {"msb": good.msb.reshape(1, -1)},
        "row_ptr: expected a NumPy array of int32": {"row_ptr": good.row_ptr.astype(np.int64)},
        "shape must be": {"shape": (2, 0)},
        "window must be": {"window": "none"},
    }
    for message, change in malformed.items():
        with pytest.raises(InvalidArgumentError, match=message):
            _rebuild(replace(good, **change))


def test_from_planes_refuses_values_that_do_not_fit():
    # Digit 8 goes with low digits below 8 alone, -8 with the others; 120 is 16 * 8 + 0 - 8.
    largest, smallest = (encode(np.full((1, 2), q, np.int8)) for q in (120, -128))
    _rebuild(largest)
    _rebuild(smallest)
    for planes, lsb in ((largest, 0x80), (smallest, 0x87)):
        with pytest.raises(QuantizationError, match=r"value at \[0, [01]\] does not fit 8 bits"):
            _rebuild(replace(planes, lsb=np.array([[lsb]], np.uint8)))


def test_pack_digits_keeps_leading_dimensions():
    digits = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 16
    assert pack_digits(digits, 4).shape == (2, 3, 2)
    assert pack_digits(digits, 4)[0, 0].tolist() == [0x10, 0x32]
