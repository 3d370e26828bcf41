"""Files that are whole or not there, and data of files in checked sizes and types."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
import stat
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError, SparqleError

MAX_TEXT_BYTES = 64 << 20
"""No file of text, JSON or TOML that we read is larger; a run of a large model takes 1 MB."""
MAX_INTEGER = 2**63 - 1
"""No number of a file is larger: what counts overflows nowhere."""
MAX_AMOUNT = 1e30
"""No measure of a file is larger: what is computed of them stays finite."""
MAX_EXPANSION = 1100
"""No archive holds more bytes for each of its own: deflate makes at most 1,032 of one."""
SCRATCH_PREFIX = ".sparqle-"
"""Folders for what is not whole yet. One that a killed process left goes with the next write."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
"""A number of things; of a file no other is read."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]
"""A number of things of which there is one at least."""
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""A size of a tensor."""
Amount = Annotated[float, msgspec.Meta(ge=0, le=MAX_AMOUNT)]
"""A measure: seconds, joules."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A part of something."""

_T = TypeVar("_T")
_COMMITS: ContextVar[tuple[ExitStack, list[Callable[[], None]]] | None] = ContextVar(
    "commits", default=None
)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path; what is written there takes the place of ``path`` at the end.

    A file that is there keeps its owner and its permissions, and links to it stay links. What
    is no regular file (a device, a pipe, the standard output) is not replaced: it gets the bytes
    at the end. After an error in the ``with`` block nothing is left behind.

    Raises
    ------
    InvalidArgumentError
        If it cannot be written.
    """
    try:
        require_writable(path)
        direct = _is_direct(path)
        # Links are followed, also those to what is not there yet.
        target = Path(path) if direct else Path(os.path.realpath(path))
        outer = _COMMITS.get()
        with ExitStack() as own:
            stack = own if outer is None else outer[0]
            folder = Path(tempfile.gettempdir()) if direct else target.parent
            temporary = stack.enter_context(scratch_folder(folder)) / Path(path).name
            yield temporary

            def commit() -> None:
                try:
                    (_write_into if direct else _replace)(temporary, target)
                except OSError as error:
                    raise _unwritable(path, error) from error

            if outer is None:
                commit()
            elif direct:
                # What cannot be taken back comes first, because it may fail.
                outer[1].insert(0, commit)
            else:
                outer[1].append(commit)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Let files take their places only at the end: after an error within, none is written."""
    if _COMMITS.get() is not None:
        yield
        return
    commits: list[Callable[[], None]] = []
    with ExitStack() as stack:
        before = _COMMITS.set((stack, commits))
        try:
            yield
        finally:
            _COMMITS.reset(before)
        for commit in commits:
            commit()


def require_writable(path: str | os.PathLike[str]) -> None:
    """Refuse an output that cannot be written, before work is spent on its content.

    Raises
    ------
    InvalidArgumentError
        If its folder is missing or not writable, or it is a folder, or a file without permission.
    """
    try:
        if not os.fspath(path):
            raise FileNotFoundError(None, "an empty name is none")
        found = _stat(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(None, "it is a folder")
        if found is not None and not os.access(path, os.W_OK):
            raise PermissionError(None, "no permission")
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise NotADirectoryError(None, "no such folder")
        if not _is_direct(path) and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "no permission to write in its folder")
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def require_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a folder for outputs that is not there and cannot be made, or is not writable.

    Raises
    ------
    InvalidArgumentError
        Says why.
    """
    try:
        if not os.fspath(path):
            raise FileNotFoundError(None, "an empty name is none")
        place = Path(path).absolute()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(None, f"{place} is no folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(None, f"no permission to write in {place}")
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder beside what it is for; folders that killed processes left are removed.

    Who uses one holds a lock on it, which ends with the process.
    """
    for other in parent.glob(f"{SCRATCH_PREFIX}*"):
        _remove_abandoned(other)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have found it before it was locked.
        if folder.exists():
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What a path leads to; None if there is nothing."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_stream(found: os.stat_result, descriptor: int) -> bool:
    """Whether a file is what a descriptor of this process writes to."""
    try:
        return os.path.samestat(found, os.fstat(descriptor))
    except OSError:
        return False


def _is_direct(path: str | os.PathLike[str]) -> bool:
    """Whether a path is written to as it is: all but regular files under names of their own."""
    found = _stat(path)
    if found is None:
        return False
    # /dev/stdout and /dev/fd/3 may lead to regular files, which somebody else has open.
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    open_elsewhere = folder == "/dev" or folder.startswith("/proc/")
    return (
        not stat.S_ISREG(found.st_mode)
        or open_elsewhere
        or _is_stream(found, 1)
        or _is_stream(found, 2)
    )


def _replace(temporary: Path, target: Path) -> None:
    found = _stat(target)
    if found is not None:
        ours = os.stat(temporary)
        if (found.st_uid, found.st_gid) != (ours.st_uid, ours.st_gid):
            try:
                os.chown(temporary, found.st_uid, found.st_gid)
            except PermissionError:
                # Of another user: it stays his, so it is written in place.
                _write_into(temporary, target)
                return
        os.chmod(temporary, stat.S_IMODE(found.st_mode))
    os.replace(temporary, target)


def _write_into(temporary: Path, target: Path) -> None:
    found = os.stat(target)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if _is_stream(found, descriptor):
            stream.flush()
            writing = os.dup(descriptor)
            break
    else:
        truncate = os.O_TRUNC if stat.S_ISREG(found.st_mode) else 0
        writing = os.open(target, os.O_WRONLY | truncate)
    with open(temporary, "rb") as source, open(writing, "wb", buffering=0) as sink:
        shutil.copyfileobj(source, sink)


def _unwritable(path: str | os.PathLike[str], error: Exception) -> InvalidArgumentError:
    reason = error.strerror if isinstance(error, OSError) else None
    return InvalidArgumentError(f"{path} cannot be written: {reason or error}")


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


def read_bytes(
    path: str | os.PathLike[str], error: type[SparqleError], limit_bytes: int = MAX_TEXT_BYTES
) -> bytes:
    """Read a file; `error` in one line if it cannot be read, or is larger than the limit."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except (OSError, ValueError) as problem:  # a path with a null character is a ValueError
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise error(f"{path} cannot be read: {reason or problem}") from problem
    if len(data) > limit_bytes:
        raise error(f"{path} is larger than {limit_bytes >> 20} MiB, more than such a file has")
    return data


def read_text(path: str | os.PathLike[str], error: type[SparqleError]) -> str:
    """Read UTF-8 text; `error` in one line if it cannot be read, or is no text."""
    try:
        return read_bytes(path, error).decode()
    except UnicodeDecodeError as problem:
        raise error(
            f"{path} is not UTF-8 text: {problem.reason} at byte {problem.start}"
        ) from problem


def read_json(path: str | os.PathLike[str], error: type[SparqleError], what: str) -> Any:
    """Read a JSON file; `error` in one line if it is missing or no JSON, which is `what`."""
    return parse_json(read_bytes(path, error), path, error, f"it must be {what}")


def parse_json(data: bytes | str, where: object, error: type[SparqleError], remedy: str) -> Any:
    """Read JSON whose numbers are finite and not beyond `MAX_INTEGER`; `error` in one line."""
    try:
        return json.loads(data, parse_float=_finite, parse_constant=_finite, parse_int=_whole)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is not JSON ({problem}); {remedy}") from problem


def read_toml(path: str | os.PathLike[str], error: type[SparqleError]) -> dict[str, Any]:
    """Read a TOML file; `error` in one line if it is missing or no TOML."""
    text = read_text(path, error)
    try:
        content = tomllib.loads(text, parse_float=_finite)
        _check_integers(content)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is no TOML: {problem}") from problem
    return content


def read_npz(
    path: str | os.PathLike[str],
    error: type[SparqleError],
    what: str,
    remedy: str,
    *,
    limit_bytes: int = MAX_INTEGER,
) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an .npz file, by name; of none more than the file can hold.

    Raises `error` in one line if the file cannot be read, is larger than the limit once it is
    unpacked, holds Python objects, or is damaged: then it is no `what`.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    try:
        with open(path, "rb") as source:
            about = os.fstat(source.fileno())
            # A device may have no end.
            if not stat.S_ISREG(about.st_mode):
                raise ValueError("it is no file")
            with zipfile.ZipFile(source) as archive:
                members = archive.infolist()
                total = sum(member.file_size for member in members)
                if total > limit_bytes:
                    raise ValueError(f"{total >> 20} MiB are more than {limit_bytes >> 20} MiB")
                if total > MAX_EXPANSION * about.st_size:
                    raise ValueError(f"it cannot hold the {total} bytes that it announces")
                for member in members:
                    name = member.filename.removesuffix(".npy")
                    if name in found:
                        raise ValueError(f"array {name!r} is there twice")
                    found[name] = _array(archive.read(member))
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except Exception as problem:  # of zipfile, zlib and NumPy: whatever they stumble over
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise error(f"{path} is no {what}, or was cut off: {reason}; {remedy}") from problem
    return found


def _array(data: bytes) -> npt.NDArray[Any]:
    """An array of its bytes, checked before NumPy takes memory for it."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read[version[0]](file)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"an array of {len(data)} bytes has the shape {shape}")
    flat: npt.NDArray[Any] = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _finite(text: str) -> float:
    """A number of a file; NaN, Infinity and 1e400 are none."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > len(str(MAX_INTEGER)) + 1 or abs(number := int(text)) > MAX_INTEGER:
        raise ValueError(f"{text[:24]} is too large a number")
    return number


def _check_integers(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _check_integers(inner)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError("an integer is too large")


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


def typed(
    data: Any,
    kind: type[_T],
    where: object,
    error: type[SparqleError],
    *,
    partial: bool = False,
) -> _T:
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
    partial : bool
        Whether the data may hold more than the type knows; by default that is an error.
    """
    try:
        found = msgspec.convert(data, kind, str_keys=True)
        unknown = "" if partial else _unknown(data, plain(found), "$")
    except (msgspec.ValidationError, SparqleError, ArithmeticError, UnicodeError) as problem:
        raise error(f"{where}: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{where}: it is nested too deeply") from problem
    if unknown:
        raise error(f"{where}: {unknown} is unknown")
    return found


def typed_version(
    data: Any,
    kind: type[_T],
    version: int,
    where: object,
    error: type[SparqleError],
    remedy: str,
    *,
    besides: Collection[str] = (),
) -> _T:
    """Read plain data as `typed` does, if its key ``version`` is the one wanted.

    `remedy` is what to do about a file of another one; the keys `besides` are left out.
    """
    found = data.get("version") if isinstance(data, dict) else None
    if found != version:
        raise error(
            f"{where} has version {found!r}, not {version}: it is damaged, or of another version; "
            f"{remedy}"
        )
    content = {key: value for key, value in data.items() if key not in ("version", *besides)}
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
