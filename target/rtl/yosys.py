"""Blocks for yosys, and runs of its commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sparqle_tvm.errors import MissingExtraError, SparqleError
from sparqle_tvm.target.rtl.pe import Block

# The library has global state and ends the process at an error, so each run has its own.
_RUN = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for line in sys.stdin.read().splitlines():
    libyosys.run_pass(line, design)
"""


def yosys(script: str) -> str:
    """Run commands of yosys, one a line; return what it printed.

    Raises
    ------
    MissingExtraError
        If pyosys is not installed.
    SparqleError
        If a command fails.
    """
    import importlib.util

    if importlib.util.find_spec("pyosys") is None:
        raise MissingExtraError(
            "hardware descriptions need amaranth and pyosys: pip install sparqle-tvm[rtl]"
        )
    found = subprocess.run(
        [sys.executable, "-c", _RUN], input=script, capture_output=True, text=True, check=False
    )
    if found.returncode:
        last = (found.stdout + found.stderr).strip().splitlines()[-3:]
        raise SparqleError(f"yosys failed: {' '.join(last)}")
    return found.stdout


def write_rtlil(block: Block, folder: Path) -> list[Path]:
    """Write every module of a block that was built with ``flat=False`` for yosys, lowest first."""
    from amaranth.back import rtlil

    files: dict[str, Path] = {}
    for part in _parts(block):
        if part.NAME not in files:
            text = rtlil.convert(part, name=part.NAME, ports=part.ports(), emit_src=False)
            files[part.NAME] = folder / f"{part.NAME}.il"
            files[part.NAME].write_text(text)
    return list(files.values())


def read_commands(files: list[Path]) -> str:
    """Commands that read modules and make plain logic and registers of them."""
    read = "".join(f"read_rtlil {file}\n" for file in files)
    # Every file calls its module the top; the last one has instances of the others.
    top = f"setattr -mod -unset top\nhierarchy -top {files[-1].stem}\n"
    return f"{read}{top}proc\nopt_clean\n"


def _parts(block: Block) -> Iterator[Block]:
    for child in block.children():
        yield from _parts(child)
    yield block
