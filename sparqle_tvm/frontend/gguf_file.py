"""Reading a GGUF file: metadata, and weights as the integers and scales that are stored."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType
from numpy.typing import NDArray

from sparqle_tvm.errors import ModelFileError, UnsupportedModelError
from sparqle_tvm.models.quantized import GROUP_SIZE, FloatWeight, GroupedWeight, Weight

T = TypeVar("T")

Blocks = NDArray[np.uint8]
"""The bytes of quantized weights: uint8 of shape (N, G, bytes per group)."""


class _Reader(gguf.GGUFReader):
    """The library's reader, which reads arrays at once and notices the end of the file.

    The library walks arrays element by element, which takes seconds for a vocabulary, and takes
    a slice past the end of the file for an empty one.
    """

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
    values: NDArray[np.int8], scale: NDArray[np.float16], minimum: NDArray[np.float16] | None = None
) -> GroupedWeight:
    """Lay out values (N, G, 32), scale (N, G) and minimum (N, G) as `GroupedWeight` wants them."""
    return GroupedWeight(
        np.ascontiguousarray(values.transpose(1, 2, 0)),
        np.ascontiguousarray(scale.T)[:, None, :],
        None if minimum is None else np.ascontiguousarray(minimum.T),
    )


def _nibbles(packed: Blocks) -> NDArray[np.int8]:
    """Unpack (N, G, 16) bytes to (N, G, 32): the low halves first, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=2).view(np.int8)


def _q4_0(blocks: Blocks) -> GroupedWeight:
    return _grouped(_nibbles(blocks[:, :, 2:]) - np.int8(8), _half(blocks, 0))


def _q4_1(blocks: Blocks) -> GroupedWeight:
    return _grouped(_nibbles(blocks[:, :, 4:]), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Blocks) -> GroupedWeight:
    return _grouped(blocks[:, :, 2:].view(np.int8), _half(blocks, 0))


_UNPACK: dict[Kind, Callable[[Blocks], GroupedWeight]] = {
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q8_0: _q8_0,
}
_FLOATS = (Kind.F16, Kind.F32)
SUPPORTED_KINDS = tuple(kind.name for kind in (*_UNPACK, *_FLOATS))
"""Names of the tensor types that a dense layer may have."""


class GGUFFile:
    """An open GGUF file.

    Parameters
    ----------
    path : file to read; it stays mapped as long as the object lives

    Raises
    ------
    ModelFileError
        If there is no such file, or it is truncated, damaged, or not GGUF.
    UnsupportedModelError
        If it was written for machines of the other byte order.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and read all but the weights."""
        self.path = path
        self.used: set[str] = set()
        try:
            with path.open("rb") as file:
                magic = file.read(4)
            if magic != b"GGUF":
                raise ModelFileError(f"{path}: not a GGUF file (it starts with {magic!r})")
            self._reader = _Reader(path)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
        except EOFError as error:
            raise ModelFileError(f"{path}: the file is truncated: {error}") from error
        except (ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
            raise ModelFileError(f"{path}: damaged, or not a GGUF file: {error}") from error
        if self._reader.byte_order != "I":
            raise UnsupportedModelError(f"{path}: the file is of the other byte order")
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file, in hexadecimal digits."""
        return hashlib.sha256(self._reader.data.data).hexdigest()

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
        tensor = self._tensor(name, (out_features, in_features))
        kind = tensor.tensor_type
        if kind not in _UNPACK and kind not in _FLOATS:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} is of type {kind.name}; supported are "
                f"{', '.join(SUPPORTED_KINDS)}"
            )
        if kind in _FLOATS:
            values = np.ascontiguousarray(tensor.data.T, dtype=np.float32)
            self._check_finite(name, values)
            return FloatWeight(values)
        groups = in_features // GROUP_SIZE
        weight = _UNPACK[kind](tensor.data.reshape(out_features, groups, -1))
        self._check_finite(name, weight.scale)
        if weight.minimum is not None:
            self._check_finite(name, weight.minimum)
        return weight

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """Return a vector as float32.

        Raises
        ------
        ModelFileError
            If it is missing, of another shape, or holds NaN or Inf.
        UnsupportedModelError
            If it is not F32 or F16.
        """
        tensor = self._tensor(name, (size,))
        if tensor.tensor_type not in _FLOATS:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} is of type {tensor.tensor_type.name}; "
                "supported for vectors are F16, F32"
            )
        values: NDArray[np.float32] = tensor.data.astype(np.float32)
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
