"""Typed errors: each says what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class SparqleError(Exception):
    """Base of all errors a user of sparqle_tvm can cause and mend."""


class VersionError(SparqleError):
    """Apache TVM or tvm-ffi is missing, or of a version that is known not to work."""


class InvalidArgumentError(SparqleError, ValueError):
    """An argument has a value, shape or dtype that the function does not take."""


class QuantizationError(InvalidArgumentError):
    """A tensor cannot be quantized or encoded: NaN or Inf, out of range, wrong dtype."""


class TargetError(SparqleError, ValueError):
    """An accelerator target is unknown, or its description is not consistent."""


class ModelFileError(SparqleError):
    """A model file is missing, truncated or not of the format it claims to be."""


class UnsupportedModelError(SparqleError):
    """A model file is intact, but its architecture or a tensor type is not supported."""


class TextError(SparqleError, ValueError):
    """The text given is missing, empty, or shorter than the tokens asked for."""


class DownloadError(SparqleError):
    """The built-in model could not be fetched, or what came has the wrong hash."""


class CompileError(SparqleError):
    """A module cannot be compiled, loaded or run on the target asked for."""


class ProgramError(SparqleError):
    """An accelerator program is malformed, or the verifier refuses it."""


class ResultFileError(SparqleError):
    """A file of results is missing, damaged, or of a version that is not read."""


class MissingExtraError(SparqleError):
    """A part of the installation that is optional is needed now."""


class CalibrationError(SparqleError, ValueError):
    """A calibration is damaged, of another model or version, or cannot meet the budget asked."""


class TuningError(SparqleError):
    """A tuning database is missing, damaged, or does not fit what it is used for."""


def closest(word: str, known: Collection[str]) -> str:
    """The known word that was probably meant; empty if none is near."""
    same = [name for name in known if name.lower() in word.lower() or name.startswith(f"{word}_")]
    close = difflib.get_close_matches(word, known, 1, 0.75) or sorted(same, key=len)[-1:]
    return close[0] if close else ""


def choose_from(word: str, known: Collection[str]) -> str:
    """What to say where a word is none of those known: the one that was meant, then all of them."""
    everything = f"known: {', '.join(known)}"
    close = closest(word, known)
    return f"did you mean {close}? {everything}" if close else everything


def require_known(what: str, value: str, known: Collection[str]) -> None:
    """Raise InvalidArgumentError if a value is none of those known; says which are."""
    if value not in known:
        raise InvalidArgumentError(f"{what} {value!r} is unknown; {choose_from(value, known)}")
