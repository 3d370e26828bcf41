"""Compiled modules kept on disk, so that what was compiled once is found again.

Numbers that a model gave, of which only the code and the model could make others, are kept so, too.

An entry is what `Executable.export` writes, named by a key: the SHA-256 of everything that the
result depends on, which is the module with its constants, what the compilation was told, and the
code and versions of all that took part. So an entry never gets old; one that is damaged, or that
this machine cannot run, is compiled again. Files are whole or not there (`files.replacing`),
whoever writes at the same time or is killed.
"""

from __future__ import annotations

import enum
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from sparqle_tvm import _versions, passes, target
from sparqle_tvm._versions import REQUIRED, VERSION
from sparqle_tvm.errors import CompileError, InvalidArgumentError, SparqleError
from sparqle_tvm.files import read_json, typed, write_json
from sparqle_tvm.models.builtin import cache_directory
from sparqle_tvm.passes._constants import Constant
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.runtime.exported import read_manifest

LOG = logging.getLogger("sparqle_tvm.cache")

FOLDER = "executables"
LIMIT_BYTES = 4 << 30
"""What all entries may take: those that were not used for the longest time go first."""

_CODE = ("*.py", "*.toml", "*.json")
_MODULE, _NUMBERS = ".so", ".json"


@dataclass(frozen=True)
class _Numbers:
    """A file of numbers: what they are, for people, and each by its name."""

    title: str
    values: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> _Numbers:
        """Read it; CompileError if that cannot be done."""
        what = "numbers that were kept"
        return typed(read_json(path, CompileError, what), cls, path, CompileError)


@dataclass(frozen=True)
class Entry:
    """One compiled module of a cache, or numbers.

    Attributes
    ----------
    path : Path
        Its file.
    nbytes : int
        Size of the file.
    used : float
        When it was written or last found, in seconds since 1970.
    """

    path: Path
    nbytes: int
    used: float

    @property
    def key(self) -> str:
        """What it was found by."""
        return self.path.stem

    @property
    def title(self) -> str:
        """What it is, for people; its bytes are not checked. CompileError if it cannot be read."""
        if self.path.suffix == _NUMBERS:
            return _Numbers.read(self.path).title
        return read_manifest(self.path).facts.title


class ExecutableCache:
    """A folder of compiled modules, and numbers.

    Parameters
    ----------
    folder : path, optional
        Where they are; made when the first one is kept. By default ``executables`` in the folder
        of downloaded models.
    limit_bytes : int
        What they may take together.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self.folder = Path(folder) if folder is not None else cache_directory() / FOLDER
        self.limit_bytes = limit_bytes

    def compiled(
        self,
        mod: tvm.IRModule,
        told: Mapping[str, Any],
        make: Callable[[], Executable],
        title: str = "",
    ) -> Executable:
        """The module, compiled as told: found, or made and kept.

        A result that cannot be kept (no linker, no room) is returned all the same; the log says so.

        Parameters
        ----------
        mod : tvm.IRModule
            What is compiled.
        told : mapping of str to anything
            All that the result depends on besides. What has no content that can be compared (an
            open database) makes it no case for the cache.
        make : callable
            Compiles.
        title : str
            What it is, for people.
        """
        try:
            path = self.folder / f"{key_of(mod, told)}{_MODULE}"
        except _NoContentError as error:
            LOG.info("not kept: %s", error)
            return make()
        if (found := self._load(path)) is not None:
            return found
        made = make()
        self._keep(path, lambda: made.export(path, title=title))
        # Its machine code is in the file: to emit it once more would take longer than to load it.
        return self._load(path) or made

    def find_numbers(self, told: Mapping[str, Any]) -> dict[str, float] | None:
        """Numbers that depend on `told` and the code alone, None if they are not kept."""
        path = self._path_of_numbers(told)
        if not path.exists():
            return None
        try:
            found = _Numbers.read(path).values
        except CompileError as error:
            LOG.warning("made again: %s", error)
            return None
        _mark_used(path)
        return found

    def keep_numbers(
        self, told: Mapping[str, Any], values: Mapping[str, float], title: str
    ) -> None:
        """Keep numbers for `find_numbers`; the title says to people what they are."""
        path = self._path_of_numbers(told)
        self._keep(path, lambda: write_json(path, {"title": title, "values": dict(values)}))

    def _path_of_numbers(self, told: Mapping[str, Any]) -> Path:
        return self.folder / f"{_begun(told).hexdigest()}{_NUMBERS}"

    def _keep(self, path: Path, write: Callable[[], None]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write()
        except (SparqleError, OSError, RuntimeError, ValueError) as error:
            LOG.warning("what was made is not kept: %s", error)
        self._shrink(path)

    def entries(self) -> list[Entry]:
        """What is kept, the last used first."""
        found = []
        for path in (*self.folder.glob(f"*{_MODULE}"), *self.folder.glob(f"*{_NUMBERS}")):
            with suppress(OSError):  # another process may have removed it
                state = path.stat()
                found.append(Entry(path, state.st_size, state.st_mtime))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self) -> list[Entry]:
        """Remove all entries; who has one loaded keeps it. What they were.

        Raises
        ------
        InvalidArgumentError
            If one cannot be removed.
        """
        found = self.entries()
        for entry in found:
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise InvalidArgumentError(
                    f"{entry.path} cannot be removed: {error.strerror or error}"
                ) from error
        return found

    def _load(self, path: Path) -> Executable | None:
        if not path.exists():
            return None
        try:
            found = Executable.load(path)
        except CompileError as error:
            LOG.warning("compiled again: %s", error)
            return None
        _mark_used(path)
        return found

    def _shrink(self, newest: Path) -> None:
        """Remove what was not used for the longest time, until the rest is within the limit."""
        left = self.limit_bytes
        for entry in self.entries():
            left -= entry.nbytes
            # Alone it may be larger than all may be: it would be written again every time.
            if left < 0 and entry.path != newest:
                LOG.info("%s goes, to make room", entry.path)
                with suppress(OSError):
                    entry.path.unlink(missing_ok=True)


def _mark_used(path: Path) -> None:
    with suppress(OSError):
        os.utime(path)


class _NoContentError(Exception):
    """Something cannot be compared by its content."""


def key_of(mod: tvm.IRModule, told: Mapping[str, Any]) -> str:
    """The key of a compilation, 64 hexadecimal digits."""
    digest = _begun(told)
    # The text has the names, which the hash of the structure leaves out; that has all attributes
    # to the last bit. Tensors, which are in neither as a whole, follow.
    _feed(digest, (mod.script(show_meta=False), tvm_ffi.structural_hash(mod)))
    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, lambda node: _feed_tensor(digest, node))
    key: str = digest.hexdigest()
    return key


def _begun(told: Mapping[str, Any]) -> Any:
    """The digest of what was told, and of all code and versions that take part."""
    digest = hashlib.sha256()
    context = tvm.transform.PassContext.current()
    passes = (context.opt_level, list(context.required_pass), list(context.disabled_pass))
    for part in (VERSION, REQUIRED, _code_digest(), passes, str(context.config), told):
        _feed(digest, part)
    return digest


def _feed_tensor(digest: Any, node: Any) -> None:
    if isinstance(node, Constant):
        _feed(digest, node.value.numpy())


@cache
def _code_digest() -> str:
    """Of all files of this package."""
    digest = hashlib.sha256()
    # In a checkout, two folders lie beside the others.
    for module in (_versions, passes, target):
        folder = Path(str(module.__file__)).parent
        for file in sorted(file for kind in _CODE for file in folder.rglob(kind)):
            _feed(digest, (str(file.relative_to(folder)), file.read_bytes()))
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Add a value to a digest, with its type, so that different ones never look alike."""
    kind = type(value).__qualname__
    if isinstance(value, enum.Enum):
        value = value.name
    if isinstance(value, np.ndarray):
        digest.update(f"{kind} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        data = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{kind} {len(data)}\n".encode())
        digest.update(data)
    elif isinstance(value, Mapping):
        _feed(digest, [(name, value[name]) for name in sorted(value)])
    elif isinstance(value, list | tuple):
        digest.update(f"{kind} {len(value)}\n".encode())
        for each in value:
            _feed(digest, each)
    elif is_dataclass(value):
        digest.update(f"{kind}\n".encode())
        _feed(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, tvm.target.Target):
        _feed(digest, str(value))
    else:
        raise _NoContentError(f"a {kind} has no content that could be compared")
