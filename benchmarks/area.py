"""Synthesise the blocks of the datapath with a public cell library, and write their areas.

    python benchmarks/area.py [--liberty FILE] [docs/area.md]

The library is osu018 (0.18 um, Oklahoma State University), which Debian's package
qflow-tech-osu018 has: apt-get install qflow-tech-osu018. Synthesis is pyosys with its abc, module
by module: gates are not moved from one module to another.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.rtl.encoder import Decoder, Encoder
from sparqle_tvm.target.rtl.pe import KINDS, Block, PeRow
from sparqle_tvm.target.rtl.shape import ArrayShape
from sparqle_tvm.target.rtl.yosys import read_commands, write_rtlil, yosys

LIBERTY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")
WINDOWS = (16, 32, 64, 128)
PARTS = ("select", "multiply", "tree", "accumulate", "locate")


def areas(block: Block, liberty: Path) -> dict[str, float]:
    """Area of each module, its own logic alone, and ``top``, all of it: square micrometres."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_rtlil(block, Path(folder))
        printed = yosys(
            f"{read_commands(files)}synth -top {files[-1].stem} -noabc\n"
            f"dfflibmap -liberty {liberty}\nabc -liberty {liberty}\nopt_clean\n"
            f"stat -liberty {liberty}\n"
        )
    found = re.findall(r"Chip area for (top )?module '\\sparqle_(\w+)': ([\d.]+)", printed)
    return {"top" if top else name: float(area) for top, name, area in found} | (
        {} if any(top for top, *_ in found) else {"top": float(found[-1][2])}
    )


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(liberty: Path) -> str:
    edge = PRESETS["sparqle/edge"]
    shapes = {columns: ArrayShape.of(edge, columns) for columns in WINDOWS}
    rows = {
        kind: areas(PeRow(shapes[64], kind, flat=False), liberty)
        for kind in KINDS
        if kind != "split"
    }
    split = {c: areas(PeRow(shape, "split", flat=False), liberty) for c, shape in shapes.items()}
    grouped = areas(PeRow(ArrayShape.of(edge, 64, 32), "split", flat=False), liberty)
    dense, native = rows["dense"]["top"], rows["native"]["top"]
    per_lane = (native - edge.cols * rows["native"]["accumulate"]) / edge.lanes
    lanes = (dense - edge.cols * rows["native"]["accumulate"]) / per_lane
    named = {**rows, **{f"split, {c} columns": found for c, found in split.items()}}
    named["split, 64 columns, groups of 32"] = grouped
    other = {
        "encoder": areas(Encoder(edge.drain_elements_per_cycle, edge.digit_bits, False), liberty),
        "decoder": areas(Decoder(edge.lanes, edge.digit_bits, False), liberty),
    }
    multiply = rows["dense"]["multiply"]
    segmented = grouped["tree"] / split[64]["tree"]
    return "\n".join(
        [
            "# Area of the datapath",
            "",
            f"Made by `python benchmarks/area.py docs/area.md`: a PE row of `{edge.name}` "
            f"({edge.cols} PEs of {edge.lanes} lanes, digits of {edge.digit_bits} bits) from "
            "`target/rtl`, synthesised for osu018 (0.18 um; Debian's qflow-tech-osu018). Areas of "
            "cells, before placement, in thousands of square micrometres; what matters are their "
            "ratios. Memories are not in them. `columns` is how many columns of K a PE row can "
            "select from in one step of the sparse pass: the K chunk of a tile.",
            "",
            "## A PE row",
            "",
            table(
                ["row", "area", "of dense", *(f"one {part}" for part in PARTS)],
                [
                    [
                        name,
                        f"{found['top'] / 1e3:.0f}",
                        f"{found['top'] / dense:.2f}",
                        *(f"{found[p] / 1e3:.1f}" if p in found else "" for p in PARTS),
                    ]
                    for name, found in named.items()
                ],
            ),
            "",
            "`dense` takes two passes of digits, `native` whole activations with as many lanes, "
            "`a4` one digit. A row has 256 multiplies and selects, 16 trees and accumulators, one "
            "locate; the rest is registers and the decoding of digits.",
            "",
            "## What follows",
            "",
            f"- On the area of a dense row, a `native` row has {lanes:.1f} lanes of {edge.lanes}; "
            "the baseline of the estimates has 8. Its accumulators are counted once.",
            f"- A multiplier of {2 * edge.digit_bits} x {edge.digit_bits} bits has "
            f"{rows['native']['multiply'] / multiply:.2f} times the area of one of "
            f"{edge.digit_bits} x {edge.digit_bits} bits (all signed, so a bit wider).",
            "- Overhead of split precision, as a share of the dense row: "
            + ", ".join(f"{f['top'] / dense - 1:.0%} with {c} columns" for c, f in split.items())
            + ".",
            "- Selecting weights costs "
            + ", ".join(f"{f['select'] / multiply:.1f}" for f in split.values())
            + " multipliers per lane with "
            + ", ".join(map(str, split))
            + " columns. The instructions count a step for any `lanes` stored digits of a K "
            "chunk, however long: hardware as described here pays for that by the column.",
            f"- A tree that keeps two weight groups apart has {segmented:.2f} "
            "times the area of a plain one.",
            f"- Finding the digits of a step takes {split[64]['locate'] / 1e3:.0f} per row with 64 "
            f"columns, {split[64]['locate'] / split[64]['top']:.1%} of the row.",
            "",
            "## Encoder and decoder",
            "",
            table(
                ["block", "area", "of a dense array"],
                [
                    [
                        name,
                        f"{found['top'] / 1e3:.0f}",
                        f"{found['top'] / (dense * edge.rows):.2%}",
                    ]
                    for name, found in other.items()
                ],
            ),
            "",
            "Not in the tables: the registers of the window of weights, which all rows share; the "
            "scale units of weight groups; buffers; wires; the longest path. Energy tables do not "
            "use these figures yet: their factors for selecting and locating stay assumptions "
            "with a band ([energy.md](energy.md)).",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--liberty", type=Path, default=LIBERTY, help="cell library")
    parser.add_argument("out", nargs="?", help="file; standard output if not given")
    arguments = parser.parse_args()
    if not arguments.liberty.is_file():
        parser.error(f"{arguments.liberty} is not there: apt-get install qflow-tech-osu018")
    text = document(arguments.liberty)
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
