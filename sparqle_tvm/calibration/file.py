"""The file of a calibration: a compressed .npz, read without pickle.

``header`` holds JSON as bytes: format, version, what the model is, and the facts of every encoding.
The arrays of all encodings stand one after another along their last axis: ``error`` (F, sum of K)
float32, ``stored`` (2, F, sum of U) int64, ``sample`` (S, F, sum of U), ``column_energy`` (sum of K
of every dense op), ``fisher`` (sum of K, or 0), and ``factors``, ``sample_keys``.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.budget import MeasuredLoss
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.loss import LossIncrease
from sparqle_tvm.calibration.statistics import FACTORS, DenseStatistics, EncodingStatistics
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError
from sparqle_tvm.files import replacing

FORMAT = "sparqle-calibration"
VERSION = 1
_SCALARS = (
    "label",
    "digest",
    "columns",
    "qmax",
    "window",
    "unit",
    "tied",
    "rows",
    "largest",
    "exceeding",
)
_DENSE = ("label", "out_features", "weight_bits", "group_size", "gain", "share", "stream")


def save_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write a calibration; the file is whole or not there.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written, or the name does not end in .npz.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise InvalidArgumentError(f"{target}: the file of a calibration has to end in .npz")
    encodings = calibration.encodings
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model_name": calibration.model_name,
        "text_name": calibration.text_name,
        "tokens": calibration.tokens,
        "measured": [asdict(m) for m in calibration.measured],
        "encodings": [
            {key: getattr(e, key) for key in _SCALARS}
            | {"dense": [{key: getattr(d, key) for key in _DENSE} for d in e.dense]}
            for e in encodings
        ],
    }
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


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration.

    Raises
    ------
    CalibrationError
        If the file is missing, damaged, no calibration, or of another version.
    """
    try:
        # Opened here, because NumPy leaves files open that it cannot read.
        with open(path, "rb") as source, np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise CalibrationError(
            f"{path}: the calibration cannot be read: {error.strerror or error}"
        ) from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, AttributeError) as error:
        raise CalibrationError(
            f"{path} is no calibration, or was cut off: {error}; calibrate again"
        ) from error
    header = _header(arrays, path)
    try:
        return _build(header, arrays)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CalibrationError(
            f"{path}: the calibration is damaged: {error!r}; calibrate again"
        ) from error


def _header(arrays: dict[str, npt.NDArray[Any]], path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        header = json.loads(arrays["header"].tobytes())
    except (KeyError, ValueError) as error:
        raise CalibrationError(f"{path} is no calibration: it has no header") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CalibrationError(f"{path} is no calibration: its format is not {FORMAT}")
    version = header.get("version")
    if version != VERSION or not np.array_equal(arrays.get("factors", ()), FACTORS):
        raise CalibrationError(
            f"{path}: the calibration is of version {version}, this program reads version "
            f"{VERSION}; calibrate again"
        )
    return header


def _build(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Calibration:
    column = unit = energy = 0
    encodings = []
    if arrays["error"].shape[0] != len(FACTORS) or arrays["stored"].shape[:2] != (2, len(FACTORS)):
        raise ValueError("the arrays do not fit the factors")
    has_fisher = arrays["fisher"].size > 0
    for facts in header["encodings"]:
        columns, units = facts["columns"], -(-facts["columns"] // facts["unit"])
        dense = []
        for one in facts["dense"]:
            part = arrays["column_energy"][energy : energy + columns]
            dense.append(DenseStatistics(**one, column_energy=part))
            energy += columns
        across, inside = slice(column, column + columns), slice(unit, unit + units)
        encodings.append(
            EncodingStatistics(
                **{key: facts[key] for key in _SCALARS},
                error=arrays["error"][:, across].astype(np.float64),
                stored=arrays["stored"][:, :, inside],
                sample=arrays["sample"][:, :, inside],
                fisher=arrays["fisher"][across] if has_fisher else None,
                dense=tuple(dense),
            )
        )
        column, unit = column + columns, unit + units
    ends = (arrays["error"].shape[1], arrays["stored"].shape[2], arrays["sample"].shape[2])
    if ends != (column, unit, unit) or len(arrays["column_energy"]) != energy:
        raise ValueError("the arrays do not fit the header")
    if len(arrays["sample"]) != len(arrays["sample_keys"]):
        raise ValueError("the sample does not fit its keys")
    return Calibration(
        header["model_name"],
        header["text_name"],
        header["tokens"],
        tuple(encodings),
        arrays["sample_keys"],
        tuple(_measured(facts) for facts in header["measured"]),
    )


def _measured(facts: dict[str, Any]) -> MeasuredLoss:
    return MeasuredLoss(**{**facts, "increase": LossIncrease(**facts["increase"])})
