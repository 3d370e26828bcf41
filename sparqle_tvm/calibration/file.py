"""The file of a calibration: a compressed .npz, read without pickle.

``header`` holds JSON as bytes: format, version, what the model is, and the facts of every encoding.
The arrays of all encodings stand one after another along their last axis: ``error`` (F, sum of K)
float32, ``stored`` (2, F, sum of U) int64, ``sample`` (S, F, sum of U), ``column_energy`` (sum of K
of every dense op), ``fisher`` (sum of K, or 0), and ``factors``, ``sample_keys``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.loss import MeasuredKv, MeasuredLoss
from sparqle_tvm.calibration.statistics import FACTORS, DenseStatistics, EncodingStatistics
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError
from sparqle_tvm.files import MAX_AMOUNT, parse_json, plain, read_npz, replacing, typed
from sparqle_tvm.numerics.window import WINDOWS

FORMAT = "sparqle-calibration"
VERSION = 2


def _facts_of(kind: type, **more: Any) -> Any:
    """Type of a list: of each of a dataclass the fields that are no arrays, and more."""
    hints = get_type_hints(kind)
    facts = [(f.name, hints[f.name]) for f in fields(kind) if hints[f.name] in _SCALARS]
    one: Any = msgspec.defstruct(kind.__name__, [*facts, *more.items()])
    return list[one]


_ARRAYS = {
    "header": ("u", 1),
    "factors": ("f", 1),
    "sample_keys": ("u", 1),
    "error": ("f", 2),
    "stored": ("i", 3),
    "sample": ("u", 3),
    "column_energy": ("f", 1),
    "fisher": ("f", 1),
}
"""Kind of the numbers of each array, and its dimensions."""
_MAX_SIZE = 2**40
_DIGEST = re.compile("[0-9a-f]{64}")
_SCALARS = (str, int, float, bool)
_Header: Any = msgspec.defstruct(
    "Header",
    [
        ("format", str, FORMAT),
        ("version", int, VERSION),
        ("model_name", str),
        ("text_name", str),
        ("tokens", int),
        ("measured", tuple[MeasuredLoss, ...]),
        ("measured_kv", tuple[MeasuredKv, ...], ()),
        ("encodings", _facts_of(EncodingStatistics, dense=_facts_of(DenseStatistics))),
    ],
    kw_only=True,
)


def write_content(calibration: Any, path: str | os.PathLike[str]) -> None:
    """Write a `Calibration`; the file is whole or not there.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written, or the name does not end in .npz.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise InvalidArgumentError(f"{target}: the file of a calibration has to end in .npz")
    encodings: Sequence[EncodingStatistics] = calibration.encodings
    # The fields alone: msgspec 0.23 would ask a calibration for them by `[...]`, as it has labels.
    given = SimpleNamespace(**{f.name: getattr(calibration, f.name) for f in fields(calibration)})
    header = plain(msgspec.convert(given, _Header, from_attributes=True))
    fisher = [e.fisher for e in encodings if e.fisher is not None]
    arrays: dict[str, npt.NDArray[Any]] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "factors": FACTORS,
        "sample_keys": calibration.sample_keys,
        "error": np.concatenate([e.error for e in encodings], axis=1).astype(np.float32),
        "stored": np.concatenate([e.stored for e in encodings], axis=2),
        "sample": np.concatenate([e.sample for e in encodings], axis=2),
        "column_energy": np.concatenate([d.column_energy for e in encodings for d in e.dense]),
        "fisher": np.concatenate(fisher) if fisher else np.zeros(0),
    }
    # An open file, because savez would add .npz to another name.
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_content(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a `Calibration`.

    Raises
    ------
    CalibrationError
        If the file is missing, damaged, no calibration, or of another version.
    """
    arrays = read_npz(path, CalibrationError, "calibration", "calibrate again")
    try:
        for name, array in arrays.items():
            _check(name, array)
    except ValueError as error:
        raise CalibrationError(f"{path} is no calibration: {error}; calibrate again") from error
    header = _header(arrays, path)
    try:
        encodings = tuple(_build(header.encodings, arrays))
    except (KeyError, ValueError, IndexError) as error:
        raise CalibrationError(
            f"{path}: the calibration is damaged: {error}; calibrate again"
        ) from error
    about = {name: getattr(header, name) for name in ("model_name", "text_name", "tokens")}
    return {
        **about,
        "measured": header.measured,
        "measured_kv": header.measured_kv,
        "encodings": encodings,
        "sample_keys": arrays["sample_keys"],
    }


def _check(name: str, array: npt.NDArray[Any]) -> None:
    """Refuse what is no array of a calibration; ValueError says why."""
    kinds, dimensions = _ARRAYS.get(name, ("", 0))
    if array.dtype.kind not in kinds or array.ndim != dimensions or np.isfortran(array):
        about = f"{array.dtype} with {array.ndim} dimensions"
        raise ValueError(f"{name!r} ({about}) is no array of a calibration")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("an array holds NaN or Inf")
    if array.size and not (array >= 0).all():
        raise ValueError("an array holds a negative number")


def _header(arrays: dict[str, npt.NDArray[Any]], path: str | os.PathLike[str]) -> Any:
    if "header" not in arrays:
        raise CalibrationError(f"{path} is no calibration: it has no header")
    header = parse_json(arrays["header"].tobytes(), path, CalibrationError, "calibrate again")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CalibrationError(f"{path} is no calibration: its format is not {FORMAT}")
    version = header.get("version")
    if version != VERSION or not np.array_equal(arrays.get("factors", ()), FACTORS):
        raise CalibrationError(
            f"{path}: the calibration is of version {version}, this program reads version "
            f"{VERSION}; calibrate again"
        )
    where = f"{path}: the calibration is damaged, calibrate again"
    return typed(header, _Header, where, CalibrationError)


def _require_sound(facts: Any) -> None:
    """Refuse numbers of an encoding that no model has; ValueError says which."""
    one = (facts.columns, facts.unit, facts.rows)
    ops = [(d.out_features, d.weight_bits, d.group_size + 1) for d in facts.dense]
    measures = [(d.gain, d.share) for d in facts.dense]
    if not ops or not all(1 <= n <= _MAX_SIZE for n in (*one, *(n for op in ops for n in op))):
        raise ValueError(f"{facts.label}: a size is not positive")
    if facts.unit > facts.columns or facts.qmax < 0:
        raise ValueError(f"{facts.label}: a count is out of range")
    if not _DIGEST.fullmatch(facts.digest):
        raise ValueError(f"{facts.label!r}: the digest is no SHA-256")
    if facts.window not in WINDOWS:
        raise ValueError(f"{facts.label}: there is no window {facts.window!r}")
    if not all(0 <= x <= MAX_AMOUNT for x in (facts.largest, *(x for m in measures for x in m))):
        raise ValueError(f"{facts.label}: a measure is negative")


def _build(
    encodings: Sequence[Any], arrays: dict[str, npt.NDArray[Any]]
) -> Iterator[EncodingStatistics]:
    column = unit = energy = 0
    if not encodings or not len(arrays["sample"]):
        raise ValueError("it is empty")
    if arrays["error"].shape[0] != len(FACTORS) or arrays["stored"].shape[:2] != (2, len(FACTORS)):
        raise ValueError("the arrays do not fit the factors")
    for facts in encodings:
        _require_sound(facts)
        columns, units = facts.columns, -(-facts.columns // facts.unit)
        dense = []
        for one in facts.dense:
            part = arrays["column_energy"][energy : energy + columns]
            dense.append(DenseStatistics(**msgspec.structs.asdict(one), column_energy=part))
            energy += columns
        across, inside = slice(column, column + columns), slice(unit, unit + units)
        yield EncodingStatistics(
            **{**msgspec.structs.asdict(facts), "dense": tuple(dense)},
            error=arrays["error"][:, across].astype(np.float64),
            stored=arrays["stored"][:, :, inside],
            sample=arrays["sample"][:, :, inside],
            fisher=arrays["fisher"][across] if arrays["fisher"].size else None,
        )
        if arrays["sample"][:, :, inside].max(initial=0) > facts.unit:
            raise ValueError(f"{facts.label}: a token has more digits than columns")
        column, unit = column + columns, unit + units
    ends = (arrays["error"].shape[1], arrays["stored"].shape[2], arrays["sample"].shape[2])
    if ends != (column, unit, unit) or len(arrays["column_energy"]) != energy:
        raise ValueError("the arrays do not fit the header")
    if len(arrays["sample"]) != len(arrays["sample_keys"]):
        raise ValueError("the sample does not fit its keys")
