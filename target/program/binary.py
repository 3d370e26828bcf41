"""Binary form of programs.

::

    4 bytes   magic "SPQP"
    2 bytes   version, little endian
    8 bytes   length of the payload
    payload   4 bytes length of the header, header (JSON, UTF-8), 4 bytes number of instructions,
              instructions (`Instruction.to_bytes`)
    32 bytes  SHA-256 of all of the above
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict
from typing import Any

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.isa import read_instruction
from sparqle_tvm.target.isa.attention_header import AttentionHeader
from sparqle_tvm.target.isa.base import Instruction
from sparqle_tvm.target.isa.header import Allocation, Header, ProgramHeader
from sparqle_tvm.target.isa.operands import Buffer, Reader
from sparqle_tvm.target.op import DenseOp

MAGIC = b"SPQP"
VERSION = 3

_PREFIX = struct.Struct("<4sHQ")
_COUNT = struct.Struct("<I")
_DIGEST_BYTES = hashlib.sha256().digest_size
# Fields of the op that have other names in the file.
_OP_KEYS = {"m": "m_max", "n": "out_features", "k": "in_features"}
_ATTENTION_KEYS = ("block_rows", "key_chunk", "stays", "row_split")
_MALFORMED = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)


def pack(header: ProgramHeader, instructions: tuple[Instruction, ...]) -> bytes:
    """Write the binary form."""
    head = json.dumps(_header_json(header), sort_keys=True, separators=(",", ":")).encode()
    code = b"".join(instruction.to_bytes() for instruction in instructions)
    payload = _COUNT.pack(len(head)) + head + _COUNT.pack(len(instructions)) + code
    data = _PREFIX.pack(MAGIC, VERSION, len(payload)) + payload
    return data + hashlib.sha256(data).digest()


def program_bytes(data: bytes) -> int:
    """Length of the program that ``data`` begins with, as its prefix says.

    Raises
    ------
    ProgramError
        If there is no prefix of a program.
    """
    if not data.startswith(MAGIC) or len(data) < _PREFIX.size:
        raise ProgramError("not an accelerator program: it does not begin with SPQP")
    return int(_PREFIX.size + _PREFIX.unpack_from(data)[2] + _DIGEST_BYTES)


def unpack(data: bytes) -> tuple[Header | AttentionHeader, tuple[Instruction, ...]]:
    """Read the binary form.

    Raises
    ------
    ProgramError
        If it is damaged, truncated, of an unknown version, or not a program.
    """
    if not data.startswith(MAGIC):
        raise ProgramError("not an accelerator program: it does not begin with SPQP")
    if len(data) < _PREFIX.size + _DIGEST_BYTES:
        raise ProgramError(f"program is truncated: {len(data)} bytes")
    _, version, length = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise ProgramError(
            f"program has version {version}, this library reads version {VERSION}; compile it again"
        )
    expected = _PREFIX.size + length + _DIGEST_BYTES
    if len(data) != expected:
        raise ProgramError(f"program is damaged: {len(data)} bytes, {expected} expected")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ProgramError("program is damaged: its checksum does not match")
    return _read_payload(Reader(body[_PREFIX.size :]))


def _read_payload(reader: Reader) -> tuple[Header | AttentionHeader, tuple[Instruction, ...]]:
    header = _read_header(reader.take(_read_count(reader)))
    count = _read_count(reader)
    instructions = []
    for index in range(count):
        try:
            instructions.append(read_instruction(reader))
        except ProgramError as error:
            raise ProgramError(f"instruction {index} of {count}: {error}") from error
    if reader.left:
        raise ProgramError(f"program has {reader.left} bytes behind its last instruction")
    return header, tuple(instructions)


def _read_count(reader: Reader) -> int:
    return int(_COUNT.unpack(reader.take(_COUNT.size))[0])


def _header_json(header: ProgramHeader) -> dict[str, Any]:
    common = {
        "kind": header.KIND,
        "accelerator": asdict(header.accelerator),
        "allocations": [asdict(a) | {"buffer": a.buffer.name} for a in header.allocations],
        "tokens": header.tokens,
    }
    if isinstance(header, AttentionHeader):
        own = {name: getattr(header, name) for name in _ATTENTION_KEYS}
        return common | own | {"op": asdict(header.op)}
    assert isinstance(header, Header)
    op = {_OP_KEYS.get(name, name): value for name, value in asdict(header.op).items()}
    # The machine tells the width of digits.
    del op["digit_bits"]
    return common | op | {"k_chunk": header.k_chunk}


def _read_header(text: bytes) -> Header | AttentionHeader:
    try:
        values = json.loads(text)
        kind = values.pop("kind")
        accelerator = Accelerator(**values.pop("accelerator"))
        allocations = tuple(
            Allocation(**(a | {"buffer": Buffer[a["buffer"]]})) for a in values.pop("allocations")
        )
        common: dict[str, Any] = {
            "accelerator": accelerator,
            "allocations": allocations,
            "tokens": tuple(values.pop("tokens")),
        }
        if kind == AttentionHeader.KIND:
            return AttentionHeader(op=AttentionOp(**values.pop("op")), **values, **common)
        if kind != Header.KIND:
            raise ProgramError(f"program is of an unknown kind, {kind!r}")
        k_chunk = values.pop("k_chunk")
        names = {key: name for name, key in _OP_KEYS.items()}
        fields = {names.get(key, key): value for key, value in values.items()}
        op = DenseOp(**fields, digit_bits=accelerator.digit_bits)
        return Header(op=op, k_chunk=k_chunk, **common)
    except _MALFORMED as error:
        raise ProgramError(f"program has a malformed header: {error}") from error
