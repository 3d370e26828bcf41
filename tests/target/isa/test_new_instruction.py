"""What an instruction declares is all that is needed for it: two that exist in this file only.

VEC.MAX takes the largest of the drained outputs of every row, ST.MAX stores what it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from handmade import SMALL, Tiles, dense_program, make_header

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.numerics import QuantizedWeights, encode
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.runtime.timeline_picture import draw_timeline, spans_of
from sparqle_tvm.target import isa
from sparqle_tvm.target.cost.events import simulated_events
from sparqle_tvm.target.isa.access import ACC, Access, Axis, Mode, Part, Tensor, Tile, ceil_div
from sparqle_tvm.target.isa.base import Instruction, transfer_cycles
from sparqle_tvm.target.isa.compute import Drain, StOut
from sparqle_tvm.target.isa.header import Allocation, Engine
from sparqle_tvm.target.isa.operands import Address, Affine, Buffer, Extent
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import (
    activation_tensors,
    simulate,
    simulate_timing,
    weight_tensors,
)
from sparqle_tvm.target.simulator.timeline import timeline
from sparqle_tvm.target.verify import verify

MAXIMA = Tile("row maxima", Buffer.ACT, "m", lambda header, cols: 4, lambda header: 4)


@dataclass(frozen=True)
class VecMax(Instruction):
    """Largest drained output of each of `m` rows: (m,) float32 in ACT."""

    OPCODE: ClassVar[int] = max(isa.INSTRUCTIONS) + 1
    MNEMONIC: ClassVar[str] = "VEC.MAX"
    ENGINE: ClassVar[Engine] = Engine.STORE
    ROLE: ClassVar[str] = "vector"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"m": "m", "n": "n"}
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access(
            *("acc", ACC, Mode.READ, "m", "n"),
            read=lambda header, values, nbytes: 4 * values["m"] * values["n"],
        ),
        Access("dst", MAXIMA, Mode.WRITE, "m", ""),
    )

    acc: Address
    dst: Address
    m: Extent
    n: Extent

    @classmethod
    def cycles(cls, header: Any, values: Any) -> Any:
        return ceil_div(values["m"] * values["n"], header.accelerator.vector_lanes)

    @classmethod
    def events(cls, header: Any, values: Any) -> Any:
        return {"vector_operations": values["m"] * values["n"]}


@dataclass(frozen=True)
class StMax(Instruction):
    """Store the maxima of `rows` rows."""

    OPCODE: ClassVar[int] = max(isa.INSTRUCTIONS) + 2
    MNEMONIC: ClassVar[str] = "ST.MAX"
    ENGINE: ClassVar[Engine] = Engine.STORE
    ROLE: ClassVar[str] = "store"
    EXTENTS: ClassVar[Mapping[str, Axis]] = {"rows": "m"}
    ACCESSES: ClassVar[tuple[Access, ...]] = (
        Access("src", MAXIMA, Mode.READ, "rows", "", "row", loaded=True),
    )
    PARTS: ClassVar[tuple[Part, ...]] = (Part(Tensor.ACT_SCALE, lambda header, cols: 4, cols=""),)
    DRAM: ClassVar[Mode] = Mode.WRITE

    src: Address
    row: Affine
    rows: Extent


ROWS, CHANNELS, TILE_ROWS, TILE_CHANNELS = 13, 10, 8, 4
PLAIN = dense_program(make_header(20, CHANNELS, 40, 16), Tiles(TILE_ROWS, TILE_CHANNELS))
NNZ = RowNnz(np.random.default_rng(0).integers(0, 9, (ROWS, 5)).astype(np.int32), 8, 40)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instructions are known for the time of a test."""
    for cls in (VecMax, StMax):
        monkeypatch.setitem(isa.INSTRUCTIONS, cls.OPCODE, cls)  # type: ignore[arg-type]


def with_maxima(**changes: dict[str, Any]) -> Program:
    """The plain program that also stores maxima; `changes` of operands by mnemonic."""
    end = max(a.end for a in PLAIN.header.allocations if a.buffer == Buffer.ACT)
    maxima = Allocation("max", Buffer.ACT, end, 1, 4 * TILE_ROWS)
    header = replace(PLAIN.header, allocations=(*PLAIN.header.allocations, maxima))
    store = next(i for i in PLAIN.instructions if isinstance(i, StOut))
    code: list[Instruction] = []
    for instruction in PLAIN.instructions:
        code.append(instruction)
        if isinstance(instruction, Drain):
            drain = instruction
            find = VecMax(drain.acc, maxima.at(), drain.m, drain.n)
            code.append(replace(find, **changes.get("find", {})))
            put = StMax(maxima.at(), store.row, store.rows)
            code.append(replace(put, **changes.get("put", {})))
    return Program(header, tuple(code))


def run(program: Program) -> Any:
    return simulate_timing(program, ROWS, NNZ)


def test_binary_form_and_listing():
    program = with_maxima()
    again = Program.from_bytes(program.to_bytes())
    assert again == program
    assert "VEC.MAX  acc=ACC[0 + 128*((i0*n1 + i1) mod 2)], dst=ACT[" in again.disassemble()
    assert "ST.MAX   src=ACT[" in again.disassemble()


def test_the_verifier_accepts_it():
    verify(with_maxima())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"find": {"dst": Address(Buffer.WGT, 0)}}, r"VEC\.MAX .*dst: must lie in ACT"),
        ({"find": {"dst": Address(Buffer.ACT, 2)}}, r"dst is not a multiple of 4 bytes"),
        ({"find": {"dst": Address(Buffer.ACT, 8188)}}, r"dst leaves its slot of ACT"),
        ({"find": {"n": Extent(11)}}, r"VEC\.MAX .*n is larger than its tensor"),
        ({"find": {"n": Extent(2)}}, r"VEC\.MAX .*that is not what lies there: see .*DRAIN"),
        # Activations of a next tile are loaded there meanwhile.
        (
            {"find": {"dst": Address(Buffer.ACT, 0)}, "put": {"src": Address(Buffer.ACT, 0)}},
            r"LD\.LSB .*no token orders this write with .*ST\.MAX",
        ),
        ({"put": {"src": Address(Buffer.ACT, 0)}}, r"ST\.MAX .*not what lies there: see .*LD\.LSB"),
        ({"put": {"row": Affine()}}, r"ST\.MAX .*other rows than those of its other operands"),
        ({"put": {"row": Affine(13)}}, r"ST\.MAX .*rows leave the tensor's 13"),
    ],
)
def test_the_verifier_refuses_it_with_wrong_operands(changes, match):
    with pytest.raises(ProgramError, match=match):
        verify(with_maxima(**changes), ROWS)


def test_timing():
    plain, result = run(PLAIN), run(with_maxima())
    # 13 rows in tiles of 8 and 5, 10 channels in tiles of 4, 4 and 2.
    tiles = [(m, n) for m in (8, 5) for n in (4, 4, 2)]
    busy = result.engines[Engine.STORE].busy_cycles
    assert busy["VEC.MAX"] == sum(-(-m * n // SMALL.vector_lanes) for m, n in tiles)
    assert busy["ST.MAX"] == sum(transfer_cycles(PLAIN.header, 4 * m) for m, _ in tiles)
    others = {name: n for name, n in busy.items() if name not in ("VEC.MAX", "ST.MAX")}
    assert others == plain.engines[Engine.STORE].busy_cycles
    assert result.total_cycles > plain.total_cycles
    for time in result.engines.values():
        assert time.busy + time.stalled == result.total_cycles


def test_the_simulator_finds_races_and_what_is_not_there():
    # Where MMAs still read, and where VEC.MAX has not put anything.
    with pytest.raises(ProgramError, match=r"a token is missing, or an address is wrong"):
        run(with_maxima(find={"dst": Address(Buffer.ACT, 0)}))
    with pytest.raises(ProgramError, match=r"ST\.MAX .*src is not what one load has left"):
        run(with_maxima(put={"rows": Extent(4)}))


def test_counts():
    plain, result = run(PLAIN).counts, run(with_maxima()).counts
    outputs, stored = ROWS * CHANNELS, 4 * ROWS * 3  # rows once per tile of channels
    assert result.dram_write_bytes == {**plain.dram_write_bytes, Tensor.ACT_SCALE: stored}
    assert result.dram_read_bytes == plain.dram_read_bytes
    assert result.descriptors == plain.descriptors + 6
    assert result.vector_operations == outputs
    read, written = (dict(plain.onchip_read_bytes), dict(plain.onchip_write_bytes))
    read[Buffer.ACC] += 4 * outputs
    read[Buffer.ACT] += stored
    written[Buffer.ACT] += stored
    assert (result.onchip_read_bytes, result.onchip_write_bytes) == (read, written)
    events = simulated_events(run(with_maxima()))
    assert events.vector_operations == outputs
    assert events.activation_write_bytes == written[Buffer.ACT]


def test_timeline_and_picture():
    result = run(with_maxima())
    events = [e for e in timeline([result])["traceEvents"] if e["ph"] == "X"]
    found = [e for e in events if e["name"] == "VEC.MAX"]
    assert len(found) == 6 and {e["tid"] for e in found} == {Engine.STORE}
    assert found[0]["args"]["instruction"].startswith("30: VEC.MAX  acc=ACC[")
    assert sum(e["args"]["dram_bytes"] for e in events if e["name"] == "ST.MAX") == 4 * ROWS * 3
    spans = spans_of(result, Engine.STORE, 0, result.total_cycles)
    assert {(s.family, s.name) for s in spans} >= {("vector", "VEC.MAX"), ("store", "ST.MAX")}
    legend = draw_timeline(result).legends[0].get_texts()
    assert "vector" in {text.get_text() for text in legend}


def test_values_have_to_be_added_to_the_simulator():
    with pytest.raises(ProgramError, match=r"VEC\.MAX .*the simulator knows no values of it"):
        simulate(with_maxima(), _tensors(PLAIN))


def _tensors(program: Program) -> Any:
    op = program.header.op
    q = np.zeros((ROWS, op.k), dtype=np.int8)
    weights = QuantizedWeights(np.zeros((op.n, op.k), dtype=np.int8), np.ones(op.n, np.float32))
    scale = np.ones(ROWS, dtype=np.float32)
    tensors = activation_tensors(program.header, encode(q, window=op.window), scale)
    return tensors | weight_tensors(program.header, weights)
