"""What an exported module says of itself: a manifest at the end of the shared library.

The loader of the system ignores what stands behind the last section of a library::

    library   as TVM wrote it
    manifest  JSON, UTF-8
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
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm.target import codegen

from sparqle_tvm._versions import VERSION
from sparqle_tvm.errors import CompileError
from sparqle_tvm.files import parse_json, plain, typed_version

MAGIC = b"SPQLIB\x01\n"
FORMAT = 1
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size
_TAIL_BYTES = _LENGTH.size + _DIGEST_BYTES + len(MAGIC)
_MAX_MANIFEST_BYTES = 1 << 16
# Features of LLVM that are instructions; the others are advice on which of them are fast.
_INSTRUCTIONS = re.compile(
    "s?sse|avx|amx|fma|f16c|bmi|popcnt|lzcnt|movbe|gfni|vaes|vpclmul|sve|sme|dotprod|i8mm|bf16"
)
_CPU = re.compile(r"[a-zA-Z0-9_.+-]{0,64}")
_REMEDY = "export it again"


@dataclass(frozen=True)
class Manifest:
    """Where an exported module came from, and what it runs on.

    Attributes
    ----------
    sparqle_tvm, apache_tvm : str
        Versions.
    system, machine : str
        As ``platform`` names them: ``Linux``, ``x86_64``.
    cpu : str
        The processor whose instructions it may use, as LLVM names it; empty if of any.
    """

    sparqle_tvm: str
    apache_tvm: str
    system: str
    machine: str
    cpu: str

    @classmethod
    def of_this_machine(cls, cpu: str) -> Manifest:
        """That of what is compiled here for a processor."""
        return cls(VERSION, tvm.__version__, platform.system(), platform.machine(), cpu)


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


def check(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of an exported module whose bytes are those that were written.

    Raises
    ------
    CompileError
        If it cannot be read, is no exported module, damaged, or made for another machine or
        another TVM.
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
            file.seek(0)
            digest, left = hashlib.sha256(), size - _DIGEST_BYTES - len(MAGIC)
            while left and (part := file.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
            if digest.digest() != tail[_LENGTH.size : -len(MAGIC)]:
                raise CompileError(f"{path} is damaged: its checksum does not match; {_REMEDY}")
            file.seek(size - _TAIL_BYTES - length)
            text = file.read(length)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise CompileError(f"{path} cannot be read: {reason or error}") from error
    data = parse_json(text, path, CompileError, _REMEDY)
    manifest = typed_version(data, Manifest, FORMAT, path, CompileError, _REMEDY)
    _require_fit(path, manifest)
    return manifest


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
