"""Synthesise the blocks of the datapath with a public cell library, and write their areas.

    python benchmarks/area.py [--liberty FILE] [--data FILE] [docs/area.md]

The library is osu018 (0.18 um, Oklahoma State University), which Debian's package
qflow-tech-osu018 has: apt-get install qflow-tech-osu018. Synthesis is pyosys with its abc, module
by module: gates are not moved from one module to another. With --data, the areas that the cost
model and the energy tables use are written, too (target/cost/data/area.toml).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from amaranth.hdl import Module, signed
from amaranth.lib.wiring import In, Out

from sparqle_tvm.target.accelerator import PIPELINE_CYCLES, PRESETS, Accelerator
from sparqle_tvm.target.rtl.encoder import Decoder, Encoder
from sparqle_tvm.target.rtl.pe import KINDS, Block, Gather, Kind, Locate, Pe, PeRow
from sparqle_tvm.target.rtl.shape import ArrayShape
from sparqle_tvm.target.rtl.yosys import read_commands, write_rtlil, yosys

LIBERTY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")
EDGE = PRESETS["sparqle/edge"]
COLUMNS = 64
"""Columns whose weights a PE can keep, where not said otherwise."""
WIDTHS = (2, 4, 8)
PARTS = ("gather", "multiply", "tree", "accumulate", "locate")
_CELLS = {
    "flip-flops": r"DFF\w*|LATCH",
    "multiplexers": r"MUX\w*",
    "exclusive or": r"X(N?)OR\w*",
    "and-or": r"(AO|OA)I\w*",
    "inverters, buffers": r"(INV|BUF|CLKBUF)\w*",
    "and, or": r"N?(AND|OR)\w*",
}


class Adder(Block):
    """An 8-bit adder, what energy tables call int8_add."""

    NAME = "sparqle_adder"
    CLOCKED = False

    def __init__(self) -> None:
        super().__init__({"a": In(signed(8)), "b": In(signed(8)), "sum": Out(signed(8))}, False)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.sum.eq(self.a + self.b)
        return m


@dataclass(frozen=True)
class Library:
    """A cell library, and what yosys makes of blocks with it."""

    liberty: Path

    def _run(self, block: Block, before: str, after: str, abc: str = "") -> str:
        with tempfile.TemporaryDirectory() as folder:
            files = write_rtlil(block, Path(folder))
            return yosys(
                f"{read_commands(files)}{before}synth -top {files[-1].stem} -noabc\n"
                f"dfflibmap -liberty {self.liberty}\nabc -liberty {self.liberty}{abc}\n{after}"
            )

    def synthesise(self, block: Block) -> Found:
        """Areas and cells of a block and all its modules."""
        printed = self._run(block, "", f"opt_clean\nstat -json -liberty {self.liberty}\n")
        text = printed[printed.rindex('"creator"') :]
        found = json.JSONDecoder().raw_decode("{" + text)[0]["modules"]
        return Found({name.removeprefix("\\sparqle_"): module for name, module in found.items()})

    def delay_ns(self, block: Block) -> float:
        """Longest path between registers, or ports, of a block without hierarchy; no wires."""
        script = (
            " -script +strash;dch;map,-B,0.9;topo;buffer,-c;upsize;dnsize;stime,-p"  # for speed
        )
        printed = self._run(block, "flatten\n", "", script)
        return float(re.findall(r"Delay\s*=\s*([\d.]+) ps", printed)[-1]) / 1e3


@dataclass(frozen=True)
class Found:
    """What stat says of modules; the first one is the top."""

    modules: dict[str, dict[str, Any]]

    def own(self, name: str) -> float:
        """Area of a module with those in it, in square micrometres."""
        return float(self.modules[name]["area"]) if name in self.modules else 0.0

    @cached_property
    def top(self) -> float:
        """Area of all."""
        return self.own(next(iter(self.modules)))

    @cached_property
    def cells(self) -> Counter[str]:
        """Cells of all, by kind."""
        return self._cells(next(iter(self.modules)))

    def _cells(self, name: str) -> Counter[str]:
        count: Counter[str] = Counter()
        for cell, number in self.modules[name]["num_cells_by_type"].items():
            inner = cell.removeprefix("sparqle_")
            if inner in self.modules:
                for kind, many in self._cells(inner).items():
                    count[kind] += number * many
                continue
            count[next(kind for kind, p in _CELLS.items() if re.fullmatch(p, cell))] += number
        return count


def row(library: Library, a: Accelerator, kind: Kind, columns: int = COLUMNS, group: int = 0):
    """A PE row of an accelerator."""
    return library.synthesise(PeRow(ArrayShape.of(a, columns, group), kind, flat=False))


@dataclass(frozen=True)
class Area:
    """Area of a PE as a line in its lanes: what a lane has, with its share of the row, and what
    a PE has however many lanes: its accumulator."""

    lane: float
    accumulate: float

    @classmethod
    def of(cls, found: Found, a: Accelerator) -> Area:
        accumulate = found.own("accumulate")
        return cls((found.top / a.cols - accumulate) / a.lanes, accumulate)


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


LIBRARY = "osu018 (0.18 um; Debian's qflow-tech-osu018)"
SRAM_UM2 = (6.0, 8.0, 12.0)
"""Of a bit of on-chip memory with its periphery at 0.18 um: an assumption, with its band. Bit cells
of that generation have between 4 and 5."""
DENSITY = 0.3
"""Share of stored digits that gates used once a step are divided by (SmolLM2: 0.30)."""
TOKENS = 128


def measure(library: Library) -> dict[str, Any]:
    """Everything that is synthesised: rows by width and kind, blocks, delays."""
    rows: dict[tuple[int, str], Found] = {}
    for k in WIDTHS:
        a = replace(EDGE, digit_bits=k)
        rows |= {(k, kind): row(library, a, kind) for kind in KINDS}
    shape = ArrayShape.of(EDGE, COLUMNS)
    return {
        "rows": rows,
        "split": {c: row(library, EDGE, "split", c) for c in (16, 32, COLUMNS, 128)},
        "grouped": {c // 32: row(library, EDGE, "split", c, 32) for c in (64, 128)},
        "adder": library.synthesise(Adder()).top,
        "encoder": library.synthesise(
            Encoder(EDGE.drain_elements_per_cycle, EDGE.digit_bits, False)
        ).top,
        "decoder": library.synthesise(Decoder(EDGE.lanes, EDGE.digit_bits, False)).top,
        "delay": {
            **{f"PE, {kind}": library.delay_ns(Pe(shape, kind, flat=False)) for kind in KINDS},
            "locate": library.delay_ns(Locate(shape, False)),
            "gather": library.delay_ns(Gather(shape, False)),
        },
        "presets": {
            name: {kind: row(library, a, kind) for kind in KINDS} for name, a in PRESETS.items()
        },
    }


def factors(found: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Factors of energy by area: low, mid, high, in the units of energy tables."""
    rows, add, lanes = found["rows"], found["adder"], EDGE.lanes
    area = {(k, kind): rows[k, kind].own("multiply") for k in WIDTHS for kind in KINDS}
    whole = area[8, "dense"]
    narrow = math.log(area[4, "dense"] / whole) / math.log(1 / 4)
    wide = math.log(area[4, "native"] / whole) / math.log(1 / 2)
    one = found["split"][lanes].own("gather")
    word = (found["split"][COLUMNS].own("gather") - one) / (COLUMNS / lanes - 1)
    select = one / lanes / add, ((one - word) / DENSITY + word) / lanes / add
    locate = found["split"][COLUMNS].own("locate") / lanes / add
    plain = found["split"][COLUMNS].own("tree")
    tree = [(f.own("tree") - plain) / lanes / add for f in found["grouped"].values()]
    encode = found["encoder"] / EDGE.drain_elements_per_cycle / add
    return {
        "narrow_multiply": (max(wide, narrow), narrow, 2 * narrow - max(wide, narrow)),
        "weight_select": (select[0], sum(select) / 2, select[1]),
        "find_first": (locate, locate * (1 + 1 / DENSITY) / 2, locate / DENSITY),
        "segmented_tree": (tree[0] / 2, tree[0], tree[1]),
        "encode": (encode / 2, encode, 2 * encode),
    }


def waits_for_memory(depths: tuple[int, ...]) -> dict[int, float]:
    """Steps of the sparse pass with memories of so many columns, over those that are counted.

    On what the dense layers of SmolLM2 take. A row whose memory cannot take the digits of the next
    dense step makes all rows take a sparse one in between, if they have a full word.
    """
    import itertools

    import numpy as np
    from msb_sparsity_table import activations

    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.frontend import from_gguf
    from sparqle_tvm.frontend.text import builtin_text, load_tokens
    from sparqle_tvm.models.builtin import fetch_builtin
    from sparqle_tvm.models.quantized import quantizer_levels
    from sparqle_tvm.numerics import encode, quantize_per_token

    imported = from_gguf(fetch_builtin("smollm2"), activations="int8")
    ids = np.asarray(load_tokens(imported.tokenizer, builtin_text(), TOKENS), np.int32)
    counted, taken = 0, Counter[int]()
    lanes = EDGE.lanes
    for _, x in itertools.islice(activations(ChoosableModel(imported.mod), ids), 106):
        q = quantize_per_token(np.asarray(x, np.float32), qmax=quantizer_levels(4))[0]
        mask = encode(q).mask()
        mask = np.pad(mask, ((0, -len(mask) % EDGE.rows), (0, -mask.shape[1] % lanes)))
        digits = mask.reshape(-1, EDGE.rows, mask.shape[1] // lanes, lanes).sum(axis=3)
        counted += int((-(-digits.sum(axis=2) // lanes)).max(axis=1).sum())
        for depth in depths:
            held = np.zeros(digits.shape[:2], np.int64)
            for step in np.moveaxis(digits, 2, 0):
                while (full := (held + step > depth).any(axis=1)).any():
                    held -= np.where(full[:, None] & (held >= lanes), lanes, 0)
                    taken[depth] += int(full.sum())
                held += step
            taken[depth] += int((-(-held // lanes)).max(axis=1).sum())
    return {depth: taken[depth] / counted for depth in depths}


def native_lanes(dense: Found, native: Found, a: Accelerator) -> float:
    """Lanes that a row of wide multipliers has on the area of a dense row."""
    d, n = Area.of(dense, a), Area.of(native, a)
    return (a.lanes * d.lane + d.accumulate - n.accumulate) / n.lane


def data(found: dict[str, Any]) -> str:
    """The data file of the cost model."""
    lines = [
        "# Areas by synthesis of target/rtl, in square micrometres before placement; only ratios",
        "# are used. Written by `python benchmarks/area.py --data target/cost/data/area.toml`.",
        f'library = "{LIBRARY}"',
        f"columns = {COLUMNS} # whose weights a PE of a split row can keep, in flip-flops",
        "",
        "# A bit of on-chip memory with its periphery: an assumption.",
        "[sram]",
        *(f"{end} = {x}" for end, x in zip(("low", "mid", "high"), SRAM_UM2, strict=True)),
    ]
    for (k, kind), one in found["rows"].items():
        area = Area.of(one, replace(EDGE, digit_bits=k))
        scheme = "sparqle" if kind == "split" else kind
        lines += ["", f"[digits{k}.{scheme}]", f"lane = {area.lane:.1f}"]
        lines += [f"accumulate = {area.accumulate:.1f}"]
    lines += ["", "# What factors of energy are taken from: low, mid, high.", "[factors]"]
    for name, band in factors(found).items():
        lines.append(f"{name} = [{', '.join(f'{x:.2f}' for x in band)}]")
    return "\n".join(lines) + "\n"


def document(library: Library, found: dict[str, Any]) -> str:
    rows = {kind: found["rows"][EDGE.digit_bits, kind] for kind in KINDS}
    dense, split = rows["dense"].top, found["split"]
    named = {kind: one for kind, one in rows.items() if kind != "split"}
    named |= {f"split, {c} columns": one for c, one in split.items()}
    named |= {f"split, {32 * g} columns, groups of 32": one for g, one in found["grouped"].items()}
    lanes = native_lanes(rows["dense"], rows["native"], EDGE)
    multiply = rows["dense"].own("multiply")
    word = (split[128].own("gather") - split[COLUMNS].own("gather")) / (64 / EDGE.lanes)
    bit = word / EDGE.lanes / EDGE.digit_bits
    switches = split[EDGE.lanes].own("gather") - word
    memory = waits_for_memory((32, 48, COLUMNS))
    kinds = list(_CELLS)
    return "\n".join(
        [
            "# Area of the datapath",
            "",
            f"Made by `python benchmarks/area.py docs/area.md`: a PE row of `{EDGE.name}` "
            f"({EDGE.cols} PEs of {EDGE.lanes} lanes, digits of {EDGE.digit_bits} bits) from "
            f"`target/rtl`, synthesised for {LIBRARY}. Areas of cells, before placement, in "
            "thousands of square micrometres; what matters are their ratios. `columns` is how many "
            "columns of K a PE can keep the weights of for the sparse pass.",
            "",
            "![The array, a PE row, a PE and the encoder as hardware](array.png)",
            "",
            "What the control does in the cycles of a tile, from the RTL itself: steps of the LSB "
            "pass, then of the MSB pass, in which rows wait for the one with most digits; the next "
            "tile may start in the last of them. There is no bubble between steps or tiles. Sums "
            f"are whole {PIPELINE_CYCLES} cycles after the last step: the array goes on meanwhile, "
            "but drain and vector unit wait for that, in programs and formulas of all schemes. "
            "`python benchmarks/cosimulate.py` runs random tiles and programs of SmolLM2's layers "
            "through the RTL, for digits of 2, 4 and 8 bits: integers and cycles are equal.",
            "",
            "![Waveform of one tile in the array: LSB pass, MSB pass, waiting rows](tile.png)",
            "",
            "## A PE row",
            "",
            table(
                ["row", "area", "of dense", *(f"one {part}" for part in PARTS)],
                [
                    [
                        name,
                        f"{one.top / 1e3:.0f}",
                        f"{one.top / dense:.2f}",
                        *(f"{one.own(p) / 1e3:.1f}" if one.own(p) else "" for p in PARTS),
                    ]
                    for name, one in named.items()
                ],
            ),
            "",
            "`dense` takes two passes of digits, `native` whole activations with as many lanes, "
            f"`a4` one digit. A row has {EDGE.cols * EDGE.lanes} multiplies, {EDGE.cols} gathers, "
            "trees and accumulators, one locate; the rest is registers and the decoding of digits.",
            "",
            "## How a lane gets its weight",
            "",
            "A step of the sparse pass takes any 16 stored digits of a row, in the order of "
            "columns, so digit number r of a row is multiplied in lane r mod 16. A lane that "
            "selects among all columns of the chunk needs a multiplexer as wide as the chunk: an "
            "earlier form of this hardware had them, and with 64 columns its row had 2.62 times "
            "the area of a dense one, most of it multiplexers. Published designs avoid them by "
            "allowing fewer movements (Bit-Tactical, ASPLOS 2019, and TensorDash, MICRO 2020: 8 "
            "inputs per lane) or fewer digits per block, and take more steps for it. Here the "
            "steps stay: in the dense pass, when the weights of 16 columns stand at a PE anyway, "
            "those that the sparse pass will need go through log2(16) = 4 stages of two-way "
            "switches to their lanes and into a small memory, word after word. Ranks of digits "
            "follow each other, so no two weights want one output of a switch (a reverse banyan "
            "network is free of conflicts for such inputs), and what sets the switches stands once "
            "in a row, for all its PEs. The sparse pass then reads whole words, in order.",
            "",
            f"Of a gather, {switches / 1e3:.1f} are switches ({switches * EDGE.cols / dense:.0%} "
            f"of a dense row for all PEs), and each 16 columns more are {word / 1e3:.1f} of "
            f"flip-flops, {bit:.0f} um2 a bit. As memory cells (assumed: "
            f"{SRAM_UM2[1]:g} um2 a bit) these would be about a twentieth.",
            "",
            "## What follows",
            "",
            "- Overhead of split precision, as a share of the dense array: "
            + ", ".join(f"{f.top / dense - 1:.0%} with {c} columns" for c, f in split.items())
            + ".",
            "- Schedules have K chunks of hundreds to thousands of columns, and programs count a "
            "step for any 16 digits of a chunk. A memory of fewer columns makes all rows take a "
            "sparse step as soon as one is full. On what the dense layers of SmolLM2 take "
            f"({TOKENS} tokens, rows as they come, chunks of the whole K) the sparse pass needs "
            + ", ".join(f"{share - 1:.2%} more steps with {c}" for c, share in memory.items())
            + " columns than is counted: how long a chunk is hardly matters to the hardware. The "
            "RTL has no such early steps: its chunk is what a PE can keep (`sparqle rtl "
            "--columns`), and it is built as wide as a program's chunks to be compared with it.",
            "- Not in the RTL: PE rows that share an activation row (`row_split`), which need "
            "weights of their own; `msb_across_groups = false`; lanes that are no power of two; "
            "the way of sums between PEs and accumulator buffer, taken to run beside the steps. "
            "The first three are refused by name.",
            f"- On the area of a dense row, a `native` row has {lanes:.1f} lanes of {EDGE.lanes}; "
            "the baseline `native` of the estimates has as many by measurement "
            + "("
            + ", ".join(
                f"k = {k}: "
                f"{native_lanes(found['rows'][k, 'dense'], found['rows'][k, 'native'], EDGE):.1f}"
                for k in WIDTHS
            )
            + f"). With all {EDGE.lanes} it has {rows['native'].top / dense:.2f} of the area, "
            f"about that of a split row.",
            f"- A multiplier of {2 * EDGE.digit_bits} x {EDGE.digit_bits} bits has "
            f"{rows['native'].own('multiply') / multiply:.2f} times the area of one of "
            f"{EDGE.digit_bits} x {EDGE.digit_bits} bits (all signed, so a bit wider).",
            "- A tree that keeps weight groups apart has "
            + ", ".join(
                f"{f.own('tree') / split[COLUMNS].own('tree'):.2f} times the area of a plain one "
                f"with {g} groups"
                for g, f in found["grouped"].items()
            )
            + ".",
            "",
            "## Presets, with their buffers",
            "",
            f"Square millimetres at 0.18 um. A split PE keeps {COLUMNS} columns. On-chip memory: "
            f"{SRAM_UM2[1]:g} ({SRAM_UM2[0]:g} to {SRAM_UM2[2]:g}) um2 a bit with periphery, an "
            "assumption; the vector unit is not counted.",
            "",
            table(
                ["preset", "dense array", "split array", "overhead", "buffers", "of the whole"],
                [_preset(PRESETS[name], kinds) for name, kinds in found["presets"].items()],
            ),
            "",
            "## Cells of a row, by kind",
            "",
            table(
                ["row", *kinds],
                [[name, *(f"{one.cells[kind]:,}" for kind in kinds)] for name, one in rows.items()],
            ),
            "",
            "## Longest path",
            "",
            "Nanoseconds at 0.18 um, mapped for speed, without wires. The path of a split PE is "
            f"{found['delay']['PE, split'] / found['delay']['PE, dense'] - 1:.0%} longer than that "
            "of a dense one: the word is read in front of the multipliers. A register there would "
            "take that away for a cycle of latency; clocks are taken to be equal.",
            "",
            table(["block", "ns"], [[n, f"{ns:.2f}"] for n, ns in found["delay"].items()]),
            "",
            "## Encoder and decoder",
            "",
            table(
                ["block", "area", "of a dense array"],
                [
                    [name, f"{found[name] / 1e3:.0f}", f"{found[name] / (dense * EDGE.rows):.2%}"]
                    for name in ("encoder", "decoder")
                ],
            ),
            "",
            "The encoder takes values of one row in a cycle, so m rows of n outputs take "
            f"m ceil(n / {EDGE.drain_elements_per_cycle}) cycles, and one more brings the last "
            "word of digits out. Drains take that in programs and formulas, those of plain outputs "
            "without the one.",
            "",
            "## Factors of energy",
            "",
            "Energy tables ([energy.md](energy.md)) take these factors from areas, for want of "
            "switching activity: an int8 addition is "
            f"{found['adder']:.0f} um2. Low: only what a stored digit needs switches. High: blocks "
            f"that work once in a dense step are paid for by the stored ones alone, {DENSITY:.0%} "
            "of digits. `narrow_multiply` is the exponent that multipliers of 4 x 4 and 8 x 8 "
            "bits give; its low end that of 8 x 4 and 8 x 8 bits.",
            "",
            table(
                ["factor", "low", "mid", "high", "is"],
                [
                    *(
                        [f"`{n}`", *(f"{x:.2f}" for x in band), "synthesised: area as proxy"]
                        for n, band in factors(found).items()
                    ),
                    ["um2 of a bit of memory", *(f"{x:g}" for x in SRAM_UM2), "assumed"],
                    ["share of stored digits", "", f"{DENSITY:g}", "", "measured"],
                ],
            ),
            "",
            "Not in the tables: the scale units of weight groups, which all schemes have; wires; "
            "the vector unit.",
            "",
        ]
    )


def _preset(a: Accelerator, kinds: dict[Kind, Found]) -> list[str]:
    dense, split = (kinds[kind].top * a.rows / 1e6 for kind in ("dense", "split"))
    buffers = [8 * a.onchip_bytes * x / 1e6 for x in SRAM_UM2]
    shares = [(split - dense) / (dense + b) for b in buffers]
    return [
        f"`{a.name}`",
        f"{dense:.0f}",
        f"{split:.0f}",
        f"{split / dense - 1:.0%}",
        f"{buffers[1]:.0f} ({buffers[0]:.0f} to {buffers[2]:.0f})",
        f"{shares[1]:.0%} ({shares[2]:.0%} to {shares[0]:.0%})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--liberty", type=Path, default=LIBERTY, help="cell library")
    parser.add_argument("--data", type=Path, help="write what the cost model uses")
    parser.add_argument("out", nargs="?", help="file; standard output if not given")
    arguments = parser.parse_args()
    if not arguments.liberty.is_file():
        parser.error(f"{arguments.liberty} is not there: apt-get install qflow-tech-osu018")
    library = Library(arguments.liberty)
    found = measure(library)
    if arguments.data:
        arguments.data.write_text(data(found), encoding="utf-8")
    text = document(library, found)
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
