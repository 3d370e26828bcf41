"""``sparqle rtl``: the array as Verilog, with a testbench."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparqle_tvm.commands import _shared as shared

TOKENS = 64


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    rtl = shared.add_command(
        commands,
        "rtl",
        _rtl,
        folders=("out",),
        epilog=shared.examples(
            "rtl --out rtl --target sparqle/edge",
        ),
        help="write the array as Verilog, with a testbench",
        description="Write the array of an accelerator as Verilog into a folder, with a testbench "
        "that runs tiles of a layer of SmolLM2-135M (fetched on first use) and compares cycles and "
        "sums, and a README of ports and timing. Needs the extra rtl.",
    )
    shared.add_target_argument(rtl, "accelerator")
    rtl.add_argument("--out", metavar="DIR", required=True, help="folder to write into")
    rtl.add_argument(
        "--columns", type=int, default=64, help="largest K chunk: columns that a PE can keep"
    )
    return rtl


def _rtl(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.studies.rtl import write_rtl
    from sparqle_tvm.target.accelerator import Accelerator

    found = write_rtl(
        Accelerator.from_target(arguments.target), arguments.columns, Path(arguments.out)
    )
    shared.emit_outcome(
        arguments.json,
        f"{arguments.out}: {', '.join(found['files'])}\nThe testbench runs {found['tiles']} tiles "
        f"of {found['source']} in {found['cycles']} cycles; see README.md there.",
        {"kind": "rtl", "target": arguments.target, **found},
    )
