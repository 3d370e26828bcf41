"""What an exported module says of itself: a manifest at the end of the shared library.

The loader of the system ignores what stands behind the last section of a library::

    library   as TVM wrote it
    tensors   weights, each at a multiple of 4096 bytes
    manifest  JSON, UTF-8: what it runs on, and what is known of it besides its code
    8 bytes   length of the manifest, little endian
    32 bytes  SHA-256 of all of the above
    8 bytes   magic

It is checked before the system sees the file, so a damaged one is refused instead of crashing in
the loader. It is no signature: loading a library runs its code, so take one from whom you would
take a program.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import struct
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tvm
from tvm.target import codegen

from sparqle_tvm import passes
from sparqle_tvm._versions import VERSION
from sparqle_tvm.errors import CompileError
from sparqle_tvm.files import Count, parse_json, plain, typed_version
from sparqle_tvm.passes._report import Skipped, Split

MAGIC = b"SPQLIB\x01\n"
FORMAT = 3
_ALIGNMENT_BYTES = 4096
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size
_TAIL_BYTES = _LENGTH.size + _DIGEST_BYTES + len(MAGIC)
_MAX_MANIFEST_BYTES = 1 << 25
# Features of LLVM that are instructions; the others are advice on which of them are fast.
_INSTRUCTIONS = re.compile(
    "s?sse|avx|amx|fma|f16c|bmi|popcnt|lzcnt|movbe|gfni|vaes|vpclmul|sve|sme|dotprod|i8mm|bf16"
)
_CPU = re.compile(r"[a-zA-Z0-9_.+-]{0,64}")
_REMEDY = "export it again"
_SCOPES = re.compile(rb"^.*executable\.cc:\d+: Warning: Scope (?:Saving|Loaded):.*\n", re.M)
_ALONE = threading.Lock()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file.

    Attributes
    ----------
    begin : int
        Its first byte.
    dtype : str
    shape : list of int
    """

    begin: Count
    dtype: str
    shape: list[Count]


@dataclass(frozen=True)
class Facts:
    """What is known of a compiled module besides its code.

    Attributes
    ----------
    collected : mapping of function name to list of EncodingInfo
        Encodings that functions return beside their results.
    lifted : mapping of function name to list of LiftedEncoding
        Encodings whose choices functions take as arguments.
    split, rewritten, skipped, tuned
        The parts of the `PassReport`.
    title : str
        What it is, for people.
    weights : mapping of function name to list of StoredTensor
        What functions take behind all other arguments.
    """

    collected: dict[str, list[passes.EncodingInfo]] = field(default_factory=dict)
    lifted: dict[str, list[passes.LiftedEncoding]] = field(default_factory=dict)
    split: list[Split] = field(default_factory=list)
    rewritten: dict[str, Count] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    tuned: list[str] = field(default_factory=list)
    title: str = ""
    weights: dict[str, list[StoredTensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        collected: dict[str, list[passes.EncodingInfo]],
        lifted: dict[str, list[passes.LiftedEncoding]],
        report: passes.PassReport,
        title: str = "",
    ) -> Facts:
        """With the parts of a report."""
        split, rewritten = list(report.split.values()), dict(report.rewritten)
        return cls(collected, lifted, split, rewritten, report.skipped, report.tuned, title)

    def report(self) -> passes.PassReport:
        """The report."""
        split = {(each.function, each.label): each for each in self.split}
        return passes.PassReport(split, Counter(self.rewritten), self.skipped, self.tuned)


@dataclass(frozen=True)
class Manifest:
    """Where an exported module came from, what it runs on, and what is known of it.

    Attributes
    ----------
    sparqle_tvm, apache_tvm : str
        Versions.
    system, machine : str
        As ``platform`` names them: ``Linux``, ``x86_64``.
    cpu : str
        The processor whose instructions it may use, as LLVM names it; empty if of any.
    facts : Facts
        See there.
    """

    sparqle_tvm: str
    apache_tvm: str
    system: str
    machine: str
    cpu: str
    facts: Facts = field(default_factory=Facts)

    @classmethod
    def of_this_machine(cls, cpu: str, facts: Facts | None = None) -> Manifest:
        """That of what is compiled here for a processor."""
        system, machine = platform.system(), platform.machine()
        return cls(VERSION, tvm.__version__, system, machine, cpu, facts or Facts())


def seal(path: Path, manifest: Manifest) -> None:
    """Append a manifest and the checksum of all to a library."""
    text = json.dumps({"version": FORMAT, **plain(manifest)}, sort_keys=True).encode()
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256")
        file.seek(0, os.SEEK_END)
        for part in (text, _LENGTH.pack(len(text))):
            digest.update(part)
            file.write(part)
        file.write(digest.digest() + MAGIC)


def append_tensors(
    path: Path, weights: Mapping[str, Sequence[Any]]
) -> dict[str, list[StoredTensor]]:
    """Append the weights of functions to a library, one that several take once."""
    written: dict[int, StoredTensor] = {}
    with path.open("ab") as file:
        for tensor in (each for tensors in weights.values() for each in tensors):
            array = np.from_dlpack(tensor)
            if array.ctypes.data in written:
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT_BYTES))
            shape = [int(n) for n in array.shape]
            written[array.ctypes.data] = StoredTensor(file.tell(), str(array.dtype), shape)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {
        name: [written[np.from_dlpack(each).ctypes.data] for each in tensors]
        for name, tensors in weights.items()
    }


def mapped_tensors(
    path: str | os.PathLike[str], weights: Mapping[str, Sequence[StoredTensor]]
) -> dict[str, list[Any]]:
    """The weights of functions, mapped into memory: what is not used is not read."""
    made: dict[int, Any] = {}
    for tensor in (each for tensors in weights.values() for each in tensors):
        if tensor.begin not in made:
            # Copied when it is written to, which nobody does: other processes have the same pages.
            mapped = np.memmap(path, tensor.dtype, "c", tensor.begin, tuple(tensor.shape))
            made[tensor.begin] = tvm.runtime.from_dlpack(mapped)
    return {name: [made[each.begin] for each in tensors] for name, tensors in weights.items()}


def check(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of an exported module whose bytes are those that were written.

    Raises
    ------
    CompileError
        If it cannot be read, is no exported module, damaged, or made for another machine or
        another TVM.
    """
    manifest = read_manifest(path, whole=True)
    _require_fit(path, manifest)
    return manifest


def read_manifest(path: str | os.PathLike[str], *, whole: bool = False) -> Manifest:
    """Read the manifest of an exported module; if `whole`, hold all of the file to its checksum.

    Raises
    ------
    CompileError
        If it cannot be read, is no exported module, or damaged.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < _TAIL_BYTES:
                raise CompileError(f"{path} is no exported module, or was cut off; {_REMEDY}")
            file.seek(size - _TAIL_BYTES)
            tail = file.read(_TAIL_BYTES)
            if not tail.endswith(MAGIC):
                raise CompileError(f"{path} is no exported module, or was cut off; {_REMEDY}")
            (length,) = _LENGTH.unpack_from(tail)
            if length > min(_MAX_MANIFEST_BYTES, size - _TAIL_BYTES):
                raise CompileError(f"{path} is damaged: its manifest has no end; {_REMEDY}")
            if whole and _digest(file, size) != tail[_LENGTH.size : -len(MAGIC)]:
                raise CompileError(f"{path} is damaged: its checksum does not match; {_REMEDY}")
            file.seek(size - _TAIL_BYTES - length)
            text = file.read(length)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise CompileError(f"{path} cannot be read: {reason or error}") from error
    data = parse_json(text, path, CompileError, _REMEDY)
    return typed_version(data, Manifest, FORMAT, path, CompileError, _REMEDY)


def _digest(file: BinaryIO, size: int) -> bytes:
    """Of all that stands before the digest."""
    file.seek(0)
    digest, left = hashlib.sha256(), size - _DIGEST_BYTES - len(MAGIC)
    while left and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    return digest.digest()


@contextmanager
def without_scopes() -> Iterator[None]:
    """Keep a warning off standard error that TVM writes for every constant it saves or loads.

    What else is written there meanwhile comes at the end.
    """
    with _ALONE, tempfile.TemporaryFile() as written:
        sys.stderr.flush()
        standard_error = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            written.seek(0)
            if rest := _SCOPES.sub(b"", written.read()):
                os.write(2, rest)


def _require_fit(path: str | os.PathLike[str], manifest: Manifest) -> None:
    here = Manifest.of_this_machine("")
    for name in ("apache_tvm", "system", "machine"):
        theirs, ours = getattr(manifest, name), getattr(here, name)
        if theirs != ours:
            raise CompileError(
                f"{path} was exported for {name} {theirs}, this is {ours}; export it here"
            )
    if not _CPU.fullmatch(manifest.cpu):
        raise CompileError(f"{path} is damaged: there is no processor {manifest.cpu!r}; {_REMEDY}")
    if manifest.cpu and not _runs(manifest.cpu):
        raise CompileError(
            f"{path} uses instructions of a {manifest.cpu} that this processor has not; export it "
            'here, or compile it for host="llvm"'
        )


def _runs(cpu: str) -> bool:
    """Whether this processor has all features of another of its architecture."""
    ours = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}
    theirs = {"kind": "llvm", "mcpu": cpu}
    return ours == theirs or _features(theirs) <= _features(ours)


def _features(target: dict[str, str]) -> set[str]:
    found = map(str, codegen.llvm_get_cpu_features(tvm.target.Target(target)))
    return {feature for feature in found if _INSTRUCTIONS.match(feature)}
