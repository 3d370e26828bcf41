"""Programs: builder, listing, binary form. What they compute is test_verify.py's."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
from handmade import Tiles, dense_program, make_header, with_op

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.base import End, Loop, Signal, Wait
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.isa.load import LdLsb
from sparqle_tvm.target.isa.operands import Affine, Buffer, Extent
from sparqle_tvm.target.program import Program, ProgramBuilder
from sparqle_tvm.target.program.binary import MAGIC, VERSION

HEADER = make_header(20, 10, 40, 16)
PROGRAM = dense_program(HEADER, Tiles(8, 4))
GROUPED = dense_program(
    with_op(HEADER, group_size=8, has_min=True, has_offset=True), Tiles(8, 4, stay=True)
)
DENSE = dense_program(
    with_op(HEADER, scheme="dense", window="unsigned", output="int32", weight_bits=8),
    Tiles(8, 4, rows_outer=False),
)


def test_builder():
    b = ProgramBuilder(HEADER)
    lsb = b.allocate("lsb", Buffer.ACT, 60, slots=2)
    pbm = b.allocate("pbm", Buffer.ACT, 16, align=64)
    b.allocate("wgt", Buffer.WGT, 8)
    b.tokens(Queue.ACT_FREE, 2)
    with b.loop("M", 8) as i:
        b.wait(Queue.ACT_FREE)
        load = LdLsb(lsb.at((i,)), Affine.loop(i, 8), Extent(8), Affine(), Extent(16))
        b.emit(load)
        b.signal(Queue.ACT_READY)
    program = b.build()
    # 60 bytes are rounded up to 64; pbm lies behind both slots.
    assert (lsb.slot_bytes, lsb.end, pbm.base, pbm.slot_bytes) == (64, 128, 128, 64)
    assert program.instructions == (
        *(Loop(0, "M", 8), Wait(Queue.ACT_FREE), load, Signal(Queue.ACT_READY), End()),
    )
    assert program.header.tokens == (2, *(0,) * (len(Queue) - 1))
    assert [a.name for a in program.header.allocations] == ["lsb", "pbm", "wgt"]


def test_the_builder_refuses_what_does_not_fit():
    b = ProgramBuilder(HEADER)
    b.allocate("a", Buffer.ACT, 8000)
    with pytest.raises(ProgramError, match=r"b needs 1 x 200 bytes of ACT from byte 8000 on"):
        b.allocate("b", Buffer.ACT, 200)


@pytest.mark.parametrize(
    ("name", "program"),
    [("handmade", PROGRAM), ("handmade_grouped", GROUPED), ("handmade_dense", DENSE)],
)
def test_listing(name, program, golden):
    golden(name, program.disassemble())


def test_a_listing_numbers_instructions_as_errors_do():
    lines = PROGRAM.disassemble().splitlines()
    code = [line for line in lines if not line.startswith(";")]
    assert len(code) == len(PROGRAM.instructions)
    for index, (line, instruction) in enumerate(zip(code, PROGRAM.instructions, strict=True)):
        number, text = line.split(":", 1)
        assert int(number) == index
        assert text.strip().startswith(str(instruction))


@pytest.mark.parametrize("program", [PROGRAM, GROUPED, DENSE])
def test_bytes_round_trip(program):
    data = program.to_bytes()
    again = Program.from_bytes(data)
    assert again == program
    assert again.to_bytes() == data


def test_size_does_not_grow_with_the_matrix():
    large = make_header(4096, 11008, 4096, 16)
    assert len(dense_program(large, Tiles(8, 4)).to_bytes()) < 1.1 * len(PROGRAM.to_bytes())


def test_every_truncation_is_refused():
    data = PROGRAM.to_bytes()
    for length in range(0, len(data), 7):
        with pytest.raises(ProgramError):
            Program.from_bytes(data[:length])
    with pytest.raises(ProgramError, match="expected"):
        Program.from_bytes(data + b"\0")


def test_every_flipped_bit_is_refused():
    data = PROGRAM.to_bytes()
    rng = np.random.default_rng(0)
    for bit in [*range(8 * 14), *rng.integers(0, 8 * len(data), 400)]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(ProgramError):
            Program.from_bytes(bytes(damaged))


def sealed(payload: bytes, version: int = VERSION) -> bytes:
    data = struct.pack("<4sHQ", MAGIC, version, len(payload)) + payload
    return data + hashlib.sha256(data).digest()


def payload_with(header: object, count: int = 0, code: bytes = b"") -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<I", len(text)) + text + struct.pack("<I", count) + code


def header_json() -> dict[str, object]:
    payload = PROGRAM.to_bytes()[14:]
    (length,) = struct.unpack_from("<I", payload)
    return json.loads(payload[4 : 4 + length])


def test_sealed_like_this_a_program_is_read():
    program = Program.from_bytes(sealed(payload_with(header_json())))
    assert program == Program(PROGRAM.header, ())


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not an accelerator program"),
        (b"ELF\0" * 40, "not an accelerator program"),
        (MAGIC, "truncated"),
        (sealed(b"", version=2), "has version 2, this library reads version 3; compile it again"),
        (sealed(b""), "within an operand"),
        (sealed(payload_with(b"\xff")), "malformed header"),
        (sealed(payload_with(b"[" * 100_000)), "malformed header"),
        (sealed(payload_with([])), "malformed header"),
        (sealed(payload_with({})), "malformed header: 'kind'"),
        (sealed(payload_with(header_json() | {"more": 1})), "malformed header"),
        (sealed(payload_with(header_json() | {"accelerator": {}})), "malformed header"),
        (sealed(payload_with(header_json() | {"tokens": 3})), "malformed header"),
        (sealed(payload_with(header_json() | {"allocations": [{}]})), "malformed header"),
        (sealed(payload_with(header_json() | {"m_max": "20"})), "m = '20'"),
        (sealed(payload_with(header_json() | {"m_max": 10**400})), "must be a whole number"),
        (sealed(payload_with(header_json(), 1)), "instruction 0 of 1: program ends"),
        (sealed(payload_with(header_json(), 1, b"\xc8")), "instruction 0 of 1: unknown opcode 200"),
        (sealed(payload_with(header_json(), 0, b"\x01")), "1 bytes behind its last instruction"),
        (sealed(payload_with(header_json(), 1, b"\x01")), "no loop is open"),
    ],
)
def test_sealed_nonsense_is_refused(data, match):
    with pytest.raises(ProgramError, match=match):
        Program.from_bytes(data)
