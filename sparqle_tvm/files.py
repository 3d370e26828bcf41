"""Files that are whole or not there, and data of files in checked types."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sparqle_tvm.errors import InvalidArgumentError, SparqleError

_T = TypeVar("_T")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what is written there takes its place at the end.

    After an error in the ``with`` block nothing is left behind.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    target = Path(path).absolute()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            temporary = Path(folder) / target.name
            yield temporary
            os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgumentError(f"{path} cannot be written: {reason}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], data: Any, *, indent: int | None = 2) -> None:
    """Write JSON; NaN and Inf, which JSON has no words for, are refused.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    separators = None if indent else (",", ":")
    text = json.dumps(data, indent=indent, separators=separators, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str], error: type[SparqleError], what: str) -> Any:
    """Read a JSON file; `error` in one line if it is missing or no JSON, which is `what`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not JSON ({problem}); it must be {what}") from problem


def _finite(text: str) -> float:
    """A number of JSON; NaN, Infinity and 1e400 are none."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries and lists: what `typed` reads. Private fields stay out."""
    if is_dataclass(value):
        # By name: msgspec writes what lies in `__dict__`, and leaves defaults out of what it read.
        names = (field.name for field in fields(value) if not field.name.startswith("_"))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return msgspec.to_builtins(value)


def typed(data: Any, kind: type[_T], where: object, error: type[SparqleError]) -> _T:
    """Read a dataclass (or another type that msgspec knows) from plain data.

    Parameters
    ----------
    data : JSON values
        What `plain` gave, maybe out of a file.
    kind : type
        What it has to be, part by part; a dataclass refuses values that it does not take.
    where : object
        Where the data came from, for the error.
    error : type
        What is raised, with the place in the data: ``$.prefill.layers[3].macs``.
    """
    try:
        found = msgspec.convert(data, kind, str_keys=True)
    except (msgspec.ValidationError, SparqleError, UnicodeError, OverflowError) as problem:
        raise error(f"{where}: {problem}") from problem
    unknown = _unknown(data, plain(found), "$")
    if unknown:
        raise error(f"{where}: {unknown} is unknown")
    return found


def typed_version(
    data: Any, kind: type[_T], version: int, where: object, error: type[SparqleError], remedy: str
) -> _T:
    """Read plain data as `typed` does, if its key ``version`` is the one wanted.

    `remedy` is what to do about a file of another one.
    """
    found = data.get("version") if isinstance(data, dict) else None
    if found != version:
        raise error(
            f"{where} has version {found!r}, not {version}: it is damaged, or of another version; "
            f"{remedy}"
        )
    content = {key: value for key, value in data.items() if key != "version"}
    return typed(content, kind, where, error)


def _unknown(data: Any, known: Any, place: str) -> str:
    """Place of the first key of `data` that `known` has not; empty if there is none."""
    if isinstance(data, dict) and isinstance(known, dict):
        pairs = [(f"{place}.{key}", data[key], known.get(key, _MISSING)) for key in data]
    elif isinstance(data, list) and isinstance(known, list):
        pairs = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(data, known, strict=True))]
    else:
        return ""
    for inner, mine, theirs in pairs:
        if theirs is _MISSING or (found := _unknown(mine, theirs, inner)):
            return inner if theirs is _MISSING else found
    return ""


_MISSING = object()
