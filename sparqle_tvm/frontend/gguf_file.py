"""Reading a GGUF file: metadata, and weights as the integers and scales that are stored."""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar, cast

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType
from numpy.typing import NDArray

from sparqle_tvm.errors import ModelFileError, UnsupportedModelError
from sparqle_tvm.models.quantized import (
    ChannelWeight,
    FloatWeight,
    GroupedWeight,
    StoredWeight,
    Weight,
)

LOG = logging.getLogger("sparqle_tvm.frontend")
T = TypeVar("T")

Blocks = NDArray[np.uint8]
"""The bytes of quantized weights: uint8 of shape (N, G, bytes per group)."""


class _ForkKind(IntEnum):
    """The type of bitnet.cpp that the library lacks."""

    I2_S = 36


class _Reader(gguf.GGUFReader):
    """The library's reader, which reads arrays at once and notices the end of the file.

    The library walks arrays element by element, which takes seconds for a vocabulary, and takes
    a slice past the end of the file for an empty one. I2_S is no type of it; the data of such a
    tensor are all bytes up to the next one.
    """

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        own = [field for field in fields if field.parts[4][0] == _ForkKind.I2_S]
        super()._build_tensors(start_offs, [f for f in fields if f.parts[4][0] != _ForkKind.I2_S])
        names = {tensor.name for tensor in self.tensors}
        begins = sorted({int(field.parts[5][0]) for field in fields} | {len(self.data)})
        for field in own:
            _, name, _, dims, _, begin = field.parts
            start, kind = start_offs + int(begin[0]), cast("Kind", _ForkKind.I2_S)
            end = start_offs + begins[begins.index(int(begin[0])) + 1]
            data = self._get(start, np.uint8, max(min(end, len(self.data)) - start, 1))
            text, count = str(bytes(name), encoding="utf-8"), math.prod(map(int, dims))
            if text in names:
                raise ValueError(f"Found duplicated tensor with name {text}")
            names.add(text)
            self.tensors.append(
                gguf.ReaderTensor(text, kind, dims, count, len(data), start, data, field)
            )

    def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **kwargs: Any) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise EOFError(f"byte {end} is needed, the file has {len(self.data)}")
        return super()._get(offset, dtype, count, *args, **kwargs)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        item, start = GGUFValueType(kind[0]), orig_offs + 12
        if item == GGUFValueType.ARRAY:
            # No model has arrays of arrays, and the library follows them as deep as they go.
            raise ValueError("an array of arrays in the metadata")
        if self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        scalar = self.gguf_scalar_to_np.get(item)
        if scalar is not None:
            values = self._get(start, scalar, count[0])
            return 12 + values.nbytes, [kind, count, values], [2], [GGUFValueType.ARRAY, item]
        if item != GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        strings, end = self._strings(start, int(count[0]))
        indices = list(range(2, 2 + len(strings)))
        return end - orig_offs, [kind, count, *strings], indices, [GGUFValueType.ARRAY, item]

    def _strings(self, offset: int, count: int) -> tuple[list[memoryview], int]:
        data, strings = self.data.data, []
        for _ in range(count):
            start = offset + 8
            offset = start + int.from_bytes(data[offset:start], sys.byteorder)
            if offset > len(data):
                raise EOFError(f"byte {offset} is needed, the file has {len(data)}")
            strings.append(data[start:offset])
        return strings, offset


def _half(blocks: Blocks, first_byte: int) -> NDArray[np.float16]:
    """Return the float16 at a byte of each group: (N, G)."""
    return np.ascontiguousarray(blocks[:, :, first_byte : first_byte + 2]).view(np.float16)[..., 0]


def _grouped(
    values: NDArray[np.int8],
    scale: NDArray[np.floating[Any]],
    minimum: NDArray[np.floating[Any]] | None = None,
) -> GroupedWeight:
    """Views of values (N, G, g), scale (N, G) and minimum (N, G) as `GroupedWeight` wants them."""
    minima = None if minimum is None else minimum.T
    return GroupedWeight(values.transpose(1, 2, 0), scale.T[:, None, :], minima)


def _nibbles(packed: Blocks) -> NDArray[np.int8]:
    """Unpack (N, G, 16) bytes to (N, G, 32): the low halves first, then the high halves."""
    rows, groups, count = packed.shape
    values = np.empty((rows, groups, 2 * count), np.uint8)
    # Into their place: on files of gigabytes, arrays in between take most of the time.
    np.bitwise_and(packed, 15, out=values[:, :, :count])
    np.right_shift(packed, 4, out=values[:, :, count:])
    return values.view(np.int8)


def _q4_0(blocks: Blocks) -> GroupedWeight:
    values = _nibbles(blocks[:, :, 2:])
    values -= np.int8(8)
    return _grouped(values, _half(blocks, 0))


def _q4_1(blocks: Blocks) -> GroupedWeight:
    return _grouped(_nibbles(blocks[:, :, 4:]), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Blocks) -> GroupedWeight:
    return _grouped(blocks[:, :, 2:].view(np.int8), _half(blocks, 0))


def _five_bits(high: Blocks, packed: Blocks) -> NDArray[np.int8]:
    """Join the fifth bits, (N, G, 4) bytes, with the nibbles: (N, G, 32), from 0 to 31."""
    fifth = np.unpackbits(high, axis=2, bitorder="little").view(np.int8)
    return _nibbles(packed) | (fifth << np.int8(4))


def _q5_0(blocks: Blocks) -> GroupedWeight:
    return _grouped(_five_bits(blocks[:, :, 2:6], blocks[:, :, 6:]) - np.int8(16), _half(blocks, 0))


def _q5_1(blocks: Blocks) -> GroupedWeight:
    values = _five_bits(blocks[:, :, 4:8], blocks[:, :, 8:])
    return _grouped(values, _half(blocks, 0), _half(blocks, 2))


# The values that a nibble of IQ4_NL stands for.
_NON_LINEAR = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


def _iq4_nl(blocks: Blocks) -> GroupedWeight:
    return _grouped(_NON_LINEAR[_nibbles(blocks[:, :, 2:])], _half(blocks, 0))


def _ternary(digits: Blocks, scale: NDArray[np.float16]) -> GroupedWeight:
    """Cut blocks of 256 values 0, 1, 2 (N, B, 256) into groups of 32, which share the scale."""
    values = digits.view(np.int8) - np.int8(1)
    return _grouped(values.reshape(len(values), -1, 32), np.repeat(scale, 8, axis=1))


def _tq2_0(blocks: Blocks) -> GroupedWeight:
    """Four values to a byte: value i of 32 bytes lies in bits 2i and 2i + 1, 32 bytes apart."""
    return _ternary(_crumbs(blocks[:, :, :64]), _half(blocks, 64))


def _tq1_0(blocks: Blocks) -> GroupedWeight:
    """Five values to a byte, as a fraction of base 3: times 3, the next digit carries over."""
    rows, count = blocks.shape[:2]
    parts = []
    for first, last, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        powers = np.array([3**n for n in range(digits)], np.uint8).reshape(digits, 1)
        shifted = blocks[:, :, None, first:last] * powers
        parts.append(((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8))
    flat = [part.reshape(rows, count, -1) for part in parts]
    return _ternary(np.concatenate(flat, axis=2), _half(blocks, 52))


_I2_S_BLOCK, _I2_S_TAIL = 128, 32


def _i2_s(data: NDArray[np.uint8], rows: int, columns: int) -> ChannelWeight:
    """Ternary weights of bitnet.cpp: 0, 1, 2 in two bits, a scale for all of them behind.

    128 values lie in 32 bytes: value i of 32 bytes in bits 6 and 7, value 32 + i below, and so on.
    So its converters write them (utils/convert-hf-to-gguf-bitnet.py of microsoft/BitNet), its
    quantizer on x86, and so dequantize_row_i2_s of its llama.cpp reads them.
    """
    packed = data[: rows * columns // 4].reshape(-1, 1, 32)
    shifts = np.array([6, 4, 2, 0], np.uint8).reshape(4, 1)
    values = ((packed >> shifts) & np.uint8(3)).reshape(rows, columns).view(np.int8)
    values -= np.int8(1)
    scale = data[rows * columns // 4 :][:4].copy().view(np.float32)
    return ChannelWeight(values, np.repeat(scale, rows))


def _crumbs(packed: Blocks) -> NDArray[np.uint8]:
    """Two bits each of (N, B, 64) bytes: (N, B, 256); bits 2i, 2i + 1 of 32 bytes are 32 values."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    digits = (packed.reshape(*packed.shape[:2], 2, 1, 32) >> shifts) & np.uint8(3)
    return digits.reshape(*packed.shape[:2], 256)


def _k_quant(
    values: NDArray[Any],
    d: NDArray[np.float16],
    scales: NDArray[Any],
    d_min: NDArray[np.float16] | None = None,
    minima: Any | None = None,
) -> GroupedWeight:
    """Values (N, B, 256) whose b groups have integer scales (N, B, b), all times d (N, B).

    A product of a float16 and an integer of 8 bits is exact in float32, and a multiple of 2^-24.
    """
    rows, groups = len(values), scales.shape[1] * scales.shape[2]

    def product(factor: NDArray[np.float16], integers: Any) -> NDArray[np.float32]:
        exact = factor.astype(np.float32)[..., None] * integers.astype(np.float32)
        return exact.reshape(rows, groups)

    minimum = None if d_min is None or minima is None else -product(d_min, minima)
    return _grouped(values.astype(np.int8).reshape(rows, groups, -1), product(d, scales), minimum)


def _q2_k(blocks: Blocks) -> GroupedWeight:
    values, scales = _crumbs(blocks[:, :, 16:80]), blocks[:, :, :16]
    return _k_quant(values, _half(blocks, 80), scales & 15, _half(blocks, 82), scales >> 4)


def _q3_k(blocks: Blocks) -> GroupedWeight:
    """Two low bits each, the third (inverted) in a mask; scales of 6 bits in 12 bytes."""
    rows, count = blocks.shape[:2]
    mask = blocks[:, :, :32].reshape(rows, count, 1, 32)
    high = (mask >> np.arange(8, dtype=np.uint8).reshape(8, 1)) & np.uint8(1)
    values = _crumbs(blocks[:, :, 32:96]).view(np.int8) + np.int8(4) * high.reshape(
        rows, count, 256
    ).view(np.int8)
    low, upper = blocks[:, :, 96:104], blocks[:, :, None, 104:108]
    pairs = (upper >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)) & np.uint8(3)
    scales = np.concatenate([low & 15, low >> 4], axis=2) | pairs.reshape(rows, count, 16) << 4
    return _k_quant(values - np.int8(4), _half(blocks, 108), scales.view(np.int8) - np.int8(32))


def _six_bit_pairs(packed: Blocks) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Eight scales and eight minima of 6 bits each, of 12 bytes."""
    first, second, rest = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=2)
    return scales, np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=2)


def _k_nibbles(packed: Blocks) -> NDArray[np.uint8]:
    """Nibbles of (N, B, 128) bytes: (N, B, 256); the low halves of 32 bytes, then the high ones."""
    parts = packed.reshape(*packed.shape[:2], 4, 1, 32)
    nibbles = np.concatenate([parts & 15, parts >> 4], axis=3)
    return nibbles.reshape(*packed.shape[:2], 256)


def _q4_k(blocks: Blocks) -> GroupedWeight:
    scales, minima = _six_bit_pairs(blocks[:, :, 4:16])
    values = _k_nibbles(blocks[:, :, 16:])
    return _k_quant(values, _half(blocks, 0), scales, _half(blocks, 2), minima)


def _q5_k(blocks: Blocks) -> GroupedWeight:
    scales, minima = _six_bit_pairs(blocks[:, :, 4:16])
    bit = np.arange(8, dtype=np.uint8).reshape(8, 1)
    fifth = (blocks[:, :, None, 16:48] >> bit) & np.uint8(1)
    values = _k_nibbles(blocks[:, :, 48:]) | fifth.reshape(*blocks.shape[:2], 256) << 4
    return _k_quant(values, _half(blocks, 0), scales, _half(blocks, 2), minima)


def _q6_k(blocks: Blocks) -> GroupedWeight:
    """Low nibbles, 64 bytes for 128 values; two high bits each; 16 scales of 8 bits."""
    shape = blocks.shape[:2]
    low = blocks[:, :, :128].reshape(*shape, 2, 1, 64)
    nibbles = np.concatenate([low & 15, low >> 4], axis=3).reshape(*shape, 256)
    values = (nibbles | _crumbs(blocks[:, :, 128:192]) << 4).view(np.int8) - np.int8(32)
    return _k_quant(values, _half(blocks, 208), blocks[:, :, 192:208].view(np.int8))


def _iq4_xs(blocks: Blocks) -> GroupedWeight:
    """The values of IQ4_NL, with scales of 6 bits per 32."""
    shape = blocks.shape[:2]
    high = np.ascontiguousarray(blocks[:, :, 2:4]).view(np.uint16)
    pairs = (high >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    low = blocks[:, :, 4:8, None] >> np.array([0, 4], np.uint8) & 15
    scales = (low.reshape(*shape, 8) | pairs << 4).view(np.int8) - np.int8(32)
    packed = blocks[:, :, 8:].reshape(*shape, 8, 1, 16)
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=3)
    return _k_quant(_NON_LINEAR[nibbles.reshape(*shape, 256)], _half(blocks, 0), scales)


@dataclass(frozen=True)
class _Form:
    """How a type stores integers, and what is known of any of its weights.

    Attributes
    ----------
    unpack : callable
        Makes weights of the bytes of blocks.
    low, high : int
        Bounds of the integers.
    scale_byte, minimum_byte : int
        Where in a block the float16 of scales is, and that of minima; -1 if there is none.
    factor : int
        The largest integer that scales are a float16 times of; 0 if they are the float16 itself.
    group_size : int
        Integers that share a scale.
    """

    unpack: Callable[[Blocks], GroupedWeight]
    low: int
    high: int
    scale_byte: int = 0
    minimum_byte: int = -1
    factor: int = 0
    group_size: int = 32

    def weight(self, blocks: Blocks) -> GroupedWeight:
        """Unpack some rows after the other, so that what is in between stays small."""
        rows = len(blocks)
        piece = max(_PIECE_BYTES // max(blocks[:1].nbytes, 1), 1)
        if rows <= piece:
            return self.unpack(blocks)
        made: list[NDArray[Any]] = []
        for begin in range(0, rows, piece):
            part = self.unpack(blocks[begin : begin + piece])
            arrays = [part.values, part.scale, *([] if part.minimum is None else [part.minimum])]
            arrays = [np.moveaxis(array, -1, 0) for array in arrays]
            made = made or [np.empty((rows, *each.shape[1:]), each.dtype) for each in arrays]
            for whole, array in zip(made, arrays, strict=True):
                whole[begin : begin + piece] = array
        return GroupedWeight(*(np.moveaxis(whole, 0, -1) for whole in made))


_FORMS: dict[Kind, _Form] = {
    Kind.Q4_0: _Form(_q4_0, -8, 7),
    Kind.Q4_1: _Form(_q4_1, 0, 15, minimum_byte=2),
    Kind.Q5_0: _Form(_q5_0, -16, 15),
    Kind.Q5_1: _Form(_q5_1, 0, 31, minimum_byte=2),
    Kind.Q8_0: _Form(_q8_0, -128, 127),
    Kind.IQ4_NL: _Form(_iq4_nl, -127, 113),
    Kind.TQ1_0: _Form(_tq1_0, -1, 1, scale_byte=52),
    Kind.TQ2_0: _Form(_tq2_0, -1, 2, scale_byte=64),
    Kind.Q2_K: _Form(_q2_k, 0, 3, 80, 82, factor=15, group_size=16),
    Kind.Q3_K: _Form(_q3_k, -4, 3, 108, factor=32, group_size=16),
    Kind.Q4_K: _Form(_q4_k, 0, 15, 0, 2, factor=63),
    Kind.Q5_K: _Form(_q5_k, 0, 31, 0, 2, factor=63),
    Kind.Q6_K: _Form(_q6_k, -32, 31, 208, factor=128, group_size=16),
    Kind.IQ4_XS: _Form(_iq4_xs, -127, 113, factor=32),
}
_FLOATS = (Kind.F16, Kind.F32, Kind.BF16)
_PIECE_BYTES = 1 << 20
SUPPORTED_KINDS = tuple(kind.name for kind in (*_FORMS, *_ForkKind, *_FLOATS))
"""Names of the tensor types that a dense layer may have."""

_PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


def _open(path: Path) -> _Reader:
    """Map a file and read all but the weights."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ModelFileError(f"{path}: not a GGUF file (it starts with {magic!r})")
        reader = _Reader(path)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except EOFError as error:
        raise ModelFileError(f"{path}: the file is truncated: {error}") from error
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        if Kind.__name__ in str(error):
            raise UnsupportedModelError(
                f"{path}: a tensor is of a type that is not known here: {error}"
            ) from error
        raise ModelFileError(f"{path}: damaged, or not a GGUF file: {error}") from error
    if reader.byte_order != "I":
        raise UnsupportedModelError(f"{path}: the file is of the other byte order")
    return reader


def _blocks(tensor: Any) -> Blocks:
    """The bytes of a quantized matrix, by rows and blocks."""
    block, _ = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    columns, rows = (int(n) for n in tensor.shape)
    blocks: Blocks = tensor.data.reshape(rows, columns // block, -1)
    return blocks


def _has_three(blocks: Blocks) -> bool:
    """Whether TQ2_0 uses the fourth value of two bits, which ternary weights do not."""
    pairs = blocks[:, :, :64]
    return bool((pairs & pairs >> 1 & np.uint8(0x55)).any())


def _floats(tensor: Any) -> NDArray[np.floating[Any]]:
    """The values of a tensor of any kind as floats."""
    if tensor.tensor_type in (Kind.F16, Kind.F32):
        return tensor.data
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


class GGUFFile:
    """An open GGUF file, or all parts of one that was split.

    Parameters
    ----------
    path : file to read, or the first part; it stays mapped as long as the object lives

    Attributes
    ----------
    tensors : the tensors of all parts, by name

    Raises
    ------
    ModelFileError
        If there is no such file, or it is truncated, damaged, or not GGUF.
    UnsupportedModelError
        If it was written for machines of the other byte order, or a tensor is of a type that the
        library does not know.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and read all but the weights."""
        self.path = path
        self.used: set[str] = set()
        self._told_of_i2_s = False
        self._reader = _open(path)
        self._parts = [self._reader, *map(_open, self._other_parts())]
        self.tensors = {t.name: t for part in self._parts for t in part.tensors}
        count = self.get("split.tensors.count", int)
        if count is not None and count != len(self.tensors):
            raise ModelFileError(
                f"{path}: its parts have {len(self.tensors)} tensors, not {count} as it says"
            )

    def _other_parts(self) -> list[Path]:
        """The other files of a model that was split; their names tell the number."""
        parts = self.get("split.count", int) or 1
        if parts == 1:
            return []
        if self.get("split.no", int):
            raise ModelFileError(f"{self.path}: not the first part of a split file: name that one")
        found = _PART.fullmatch(self.path.name)
        if found is None or int(found[2]) != parts:
            raise ModelFileError(
                f"{self.path}: the first of {parts} parts has to be called "
                f"NAME-00001-of-{parts:05}.gguf, and the others lie beside it"
            )
        names = (f"{found[1]}-{part:05}-of-{found[2]}.gguf" for part in range(2, parts + 1))
        return [self.path.with_name(name) for name in names]

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of the metadata that begin so."""
        return [key for key in self._reader.fields if key.startswith(prefix)]

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file (of all parts), in hexadecimal digits."""
        digest = hashlib.sha256()
        for part in self._parts:
            # In pieces: all pages at once would count as memory of this process.
            for begin in range(0, len(part.data), _PIECE_BYTES):
                digest.update(part.data.data[begin : begin + _PIECE_BYTES])
                self._release()
        return digest.hexdigest()

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return a value of the metadata, or None if there is none.

        Raises
        ------
        ModelFileError
            If the value is not of the type asked for (int, float, str, bool or list).
        """
        field = self._reader.fields.get(key)
        if field is None:
            return None
        try:
            value = field.contents()
        except ValueError as error:
            raise ModelFileError(f"{self.path}: metadata {key!r} is damaged: {error}") from error
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelFileError(
                f"{self.path}: metadata {key!r} is {type(value).__name__}, not {kind.__name__}"
            )
        return value

    def require(self, key: str, kind: type[T]) -> T:
        """Return a value of the metadata that must be there.

        Raises
        ------
        ModelFileError
            If it is missing, or not of the type asked for.
        """
        value = self.get(key, kind)
        if value is None:
            raise ModelFileError(f"{self.path}: metadata {key!r} is missing")
        return value

    def weight(self, name: str, in_features: int, out_features: int) -> Weight:
        """Return a matrix as stored: integers with their scales, or floats.

        Raises
        ------
        ModelFileError
            If it is missing, of another shape, or holds NaN or Inf.
        UnsupportedModelError
            If it is of an unsupported type.
        """
        tensor = self._dense_tensor(name, in_features, out_features)
        form = _FORMS.get(tensor.tensor_type)
        if tensor.tensor_type == _ForkKind.I2_S:
            return _i2_s(tensor.data, out_features, in_features)
        if form is None:
            values = np.ascontiguousarray(_floats(tensor).T, dtype=np.float32)
            self._check_finite(name, values)
            return FloatWeight(values)
        weight = form.weight(_blocks(tensor))
        self._check_finite(name, weight.scale)
        if weight.minimum is not None:
            self._check_finite(name, weight.minimum)
        return weight

    def stored(self, name: str, in_features: int, out_features: int) -> StoredWeight:
        """Return the same as `weight`, to be read later; what is wrong with it is said now.

        Raises
        ------
        ModelFileError, UnsupportedModelError
            As in `weight`.
        """
        tensor = self._dense_tensor(name, in_features, out_features)
        form = _FORMS.get(tensor.tensor_type)

        def load() -> Weight:
            weight = self.weight(name, in_features, out_features)
            self._release()
            return weight

        if tensor.tensor_type == _ForkKind.I2_S:
            self._release()
            return StoredWeight(in_features, out_features, load, bounds=(-1, 1))
        if form is None:
            self._check_finite(name, _floats(tensor))
            self._release()
            return StoredWeight(in_features, out_features, load)
        blocks, factor = _blocks(tensor), max(form.factor, 1)
        halves = [_half(blocks, at) for at in (form.scale_byte, form.minimum_byte) if at >= 0]
        for half in halves:
            self._check_finite(name, half)
        largest = [float(np.abs(half).max(initial=0)) * factor for half in halves]
        low, high = form.low, form.high
        if form.unpack is _tq2_0 and not _has_three(blocks):
            high = 1
        self._release()
        return StoredWeight(
            *(in_features, out_features, load),
            bounds=(low, high),
            group_size=form.group_size,
            scale_dtype="float32" if form.factor else "float16",
            scale_bound=largest[0],
            minimum_bound=largest[-1],
            has_minimum=form.minimum_byte >= 0,
        )

    def _dense_tensor(self, name: str, in_features: int, out_features: int) -> Any:
        tensor = self._tensor(name, (out_features, in_features))
        if tensor.tensor_type.name not in SUPPORTED_KINDS:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} is of type {tensor.tensor_type.name}; supported are "
                f"{', '.join(SUPPORTED_KINDS)}"
            )
        if tensor.tensor_type == _ForkKind.I2_S:
            self._check_i2_s(tensor)
        return tensor

    def _check_i2_s(self, tensor: Any) -> None:
        """Raise unless the bytes are what bitnet.cpp writes: other programs use the number too."""
        what = f"{self.path}: tensor {tensor.name!r} is of type 36"
        needed, columns = tensor.n_elements // 4 + _I2_S_TAIL, int(tensor.shape[0])
        if columns % _I2_S_BLOCK or not 0 <= tensor.n_bytes - needed < self._reader.alignment:
            raise UnsupportedModelError(
                f"{what}, but no I2_S of bitnet.cpp: rows of {columns} values in {tensor.n_bytes} "
                f"bytes, where it has multiples of {_I2_S_BLOCK}, and {needed} bytes"
            )
        packed = tensor.data[: tensor.n_elements // 4]
        if (packed & packed >> 1 & np.uint8(0x55)).any():
            raise UnsupportedModelError(f"{what} (I2_S) and has a fourth value besides -1, 0, 1")
        self._check_finite(tensor.name, tensor.data[len(packed) :][:4].copy().view(np.float32))
        if not self._told_of_i2_s:
            self._told_of_i2_s = True
            LOG.warning(
                "%s: I2_S is read in the order of bitnet.cpp's converter and of x86; a file that "
                "its llama-quantize made on ARM has another order, and does not say so",
                self.path,
            )

    def _release(self) -> None:
        """Let go of the pages of the files: they count as memory of this process while mapped."""
        for part in self._parts:
            mapped = getattr(part.data, "_mmap", None)
            if mapped is not None:
                mapped.madvise(mmap.MADV_DONTNEED)

    def first_rows(self, name: str, count: int = 256) -> GroupedWeight | None:
        """Return some outputs of a matrix of integers, unchecked; None of floats or unknown types.

        It is not noted as read: this is to see how integers are stored.
        """
        tensor = self.tensors[name]
        form = _FORMS.get(tensor.tensor_type)
        return None if form is None else form.unpack(_blocks(tensor)[:count])

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """Return a vector as float32.

        Raises
        ------
        ModelFileError
            If it is missing, of another shape, or holds NaN or Inf.
        UnsupportedModelError
            If it is not F32, F16 or BF16.
        """
        tensor = self._tensor(name, (size,))
        if tensor.tensor_type not in _FLOATS:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} is of type {tensor.tensor_type.name}; "
                "supported for vectors are F16, F32, BF16"
            )
        values: NDArray[np.float32] = _floats(tensor).astype(np.float32)
        self._check_finite(name, values)
        return values

    def unused(self) -> list[str]:
        """Return the names of the tensors that nobody has read."""
        return [name for name in self.tensors if name not in self.used]

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self.path}: tensor {name!r} is missing")
        found = tuple(int(n) for n in reversed(tensor.shape))
        if found != shape:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} has shape {found}, the metadata asks for {shape}"
            )
        self.used.add(name)
        return tensor

    def _check_finite(self, name: str, values: NDArray[np.floating[Any]]) -> None:
        if not np.isfinite(values).all():
            raise ModelFileError(f"{self.path}: tensor {name!r} holds NaN or Inf")
