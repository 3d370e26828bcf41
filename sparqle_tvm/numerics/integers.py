"""Exact integer arithmetic on NumPy arrays: digit packing, range checks, matrix products.

Slicing and quantization both stand on these few functions. A digit is k bits wide; digits are
packed low bits first, so element 0 of a byte sits in its lowest k bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError, QuantizationError, SparqleError

# Dtype of a signed 2k-bit integer, by k.
CONTAINER = {2: "int8", 4: "int8", 8: "int16"}
# Dtype of a high digit, from -(2^k - 1) to 2^k - 1, by k.
DIGIT = {2: "int8", 4: "int8", 8: "int16"}
INT32_MAX = 2**31 - 1
DIGIT_BITS = (2, 4, 8)


def require_digit_bits(k: int) -> None:
    """Refuse a digit width other than 2, 4 or 8: InvalidArgumentError."""
    if not isinstance(k, int) or k not in DIGIT_BITS:
        raise InvalidArgumentError(f"k must be 2, 4 or 8 (bits per digit), got {k!r}")


def container(k: int, signed: bool = True) -> str:
    """Dtype of a 2k-bit integer; InvalidArgumentError if k is not 2, 4 or 8."""
    require_digit_bits(k)
    return CONTAINER[k] if signed else f"u{CONTAINER[k]}"


def bounds(k: int, signed: bool = True) -> tuple[int, int]:
    """Smallest and largest 2k-bit integer; InvalidArgumentError if k is not 2, 4 or 8."""
    require_digit_bits(k)
    low = -(1 << (2 * k - 1)) if signed else 0
    return low, low + (1 << 2 * k) - 1


def require_int8(k: int, what: str, error: type[SparqleError] = InvalidArgumentError) -> None:
    """Refuse digits other than 4 bits where activations are int8; `what` has them.

    The one place that says so: our models quantize activations to int8, which are two digits of 4
    bits (2k = 8), and calibration tries its factors on those.
    """
    if 2 * k != 8:
        raise error(
            f"{what} has digits of {k} bits, so activations of {2 * k}; this runs int8 activations "
            "alone, which are two digits of 4 bits (sparqle estimate counts other widths)"
        )


def require_matrix(a: Any, dtypes: tuple[str, ...], name: str) -> None:
    """Refuse anything but a matrix (rows, K), K > 0, of one of the dtypes: QuantizationError."""
    if not isinstance(a, np.ndarray):
        raise QuantizationError(f"{name}: expected a NumPy array, got {type(a).__name__}")
    if a.ndim != 2:
        raise QuantizationError(
            f"{name}: expected a matrix (rows, K), got shape {a.shape}; flatten leading dimensions"
        )
    if a.dtype.name not in dtypes:
        raise QuantizationError(f"{name}: expected dtype {' or '.join(dtypes)}, got {a.dtype}")
    if a.shape[1] == 0:
        raise QuantizationError(f"{name}: K = 0, there is nothing to multiply; shape {a.shape}")


def first_position(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Index of the first true element in row-major order; one must be true."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def max_magnitude(a: npt.NDArray[Any]) -> int:
    """Largest absolute value of an array of integers as a Python int; 0 for an empty array."""
    return max(abs(int(a.min())), abs(int(a.max()))) if a.size else 0


def plane_bytes(columns: int, bits: int) -> int:
    """Bytes of one row of `columns` elements with `bits` bits each, padded to a byte."""
    return -(-columns * bits // 8)


def pack_digits(digits: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.uint8]:
    """Pack digits of k bits into bytes along the last axis, low bits first.

    Parameters
    ----------
    digits : uint8 (..., n)
        Digits in [0, 2^k - 1].
    k : {2, 4, 8}
        Bits per digit.

    Returns
    -------
    uint8 (..., ceil(n * k / 8))
        Unused high bits of the last byte are zero.
    """
    require_digit_bits(k)
    per_byte = 8 // k
    packed = np.zeros((*digits.shape[:-1], plane_bytes(digits.shape[-1], k)), dtype=np.uint8)
    for i in range(per_byte):
        part = digits[..., i::per_byte]
        packed[..., : part.shape[-1]] |= part << np.uint8(i * k)
    return packed


def unpack_digits(packed: npt.NDArray[np.uint8], k: int, count: int) -> npt.NDArray[np.uint8]:
    """Undo `pack_digits`: uint8 (..., bytes) to the first `count` digits of each row."""
    require_digit_bits(k)
    per_byte = 8 // k
    mask = np.uint8(2**k - 1)
    digits = np.empty((*packed.shape, per_byte), dtype=np.uint8)
    for i in range(per_byte):
        digits[..., i] = (packed >> np.uint8(i * k)) & mask
    return digits.reshape(*packed.shape[:-1], packed.shape[-1] * per_byte)[..., :count]


def sign_extend(digits: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int8]:
    """Read k-bit digits as two's complement: uint8 in [0, 2^k - 1] to int8, same shape."""
    shift = np.int8(8 - k)
    return ((digits << np.uint8(8 - k)).view(np.int8)) >> shift


def int_matmul(q: npt.NDArray[Any], w: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Exact product ``q @ w.T`` of small integers, through floating-point BLAS.

    Every partial sum is at most ``K * max|q| * max|w|`` in magnitude. Up to 2^24 float32 holds all
    such integers, up to 2^53 float64 does, so no order of additions can round.

    Parameters
    ----------
    q : int8, uint8, int16 or uint16 (M, K)
        Activations.
    w : int8 (N, K)
        Weights, one row per output channel.

    Returns
    -------
    int32 (M, N)
        The exact product.

    Raises
    ------
    QuantizationError
        If dtype or shape do not fit, or if an element of the product does not fit int32.
    """
    require_matrix(q, ("int8", "uint8", "int16", "uint16"), "activation")
    require_matrix(w, ("int8",), "weight")
    if q.shape[1] != w.shape[1]:
        raise QuantizationError(
            f"activation {q.shape} and weight {w.shape} differ in K; weights are (N, K), out by in"
        )
    bound = q.shape[1] * max_magnitude(q) * max_magnitude(w)
    exact = np.float32 if bound <= 2**24 else np.float64
    product: npt.NDArray[Any] = np.matmul(q.astype(exact), w.astype(exact).T)
    return to_int32(product) if bound > INT32_MAX else product.astype(np.int32)


def to_int32(accumulated: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Cast exact integers of any dtype and shape to int32.

    Raises QuantizationError if one does not fit: the accelerator's accumulator has 32 bits.
    """
    if max_magnitude(accumulated) > INT32_MAX:
        at = first_position(np.abs(accumulated) > INT32_MAX)
        raise QuantizationError(
            f"the dot product at {list(at)} is {int(accumulated[at])}, which does not fit the "
            "int32 accumulator; split K or use narrower operands"
        )
    return accumulated.astype(np.int32)
