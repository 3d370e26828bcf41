"""``sparqle sweep``: many estimates, over a grid or a list of points."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from sparqle_tvm.studies.sweep import Sweep, SweepResult

DESCRIPTION = """Run `sparqle estimate` for every point of a grid or a list, on all cores or on a
Dask cluster, and write a table. Names are the options of `sparqle estimate` (model, phase,
seq, batch, msb_sparsity, kv_bits, target, node, memory) and the fields of the
accelerator (rows, cols, lanes, dram_bytes_per_cycle, activation_buffer_bytes, ...).
A sweep that was killed goes on where it was when it is started again.
"""

EXAMPLES = """examples:
  sparqle sweep --fix model=llama2-7b --fix phase=prefill \\
    --axis seq=128,512,2048 --axis msb_sparsity=0:0.9:10 --out sweep.csv
  sparqle sweep sweep.toml --out sweep.json --workers 8
  sparqle sweep sweep.toml --out sweep.csv --scheduler tcp://head:8786
"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    sweep = shared.add_command(
        commands,
        "sweep",
        _sweep,
        files=("out",),
        kept=_kept,
        help="estimate many points: models, lengths, sparsities, accelerators",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument(
        "points",
        nargs="?",
        metavar="TOML",
        help="file with [fixed] and either [grid] or [[points]]",
    )
    sweep.add_argument(
        "--axis",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="an axis of the grid: a,b,c or first:last:count; may be given several times",
    )
    sweep.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what all points share; may be given several times",
    )
    sweep.add_argument(
        "--out", metavar="FILE", default="sweep.csv", help="the table, .csv or .json (sweep.csv)"
    )
    sweep.add_argument("--workers", type=int, help="processes (one for each core)")
    sweep.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler, tcp://host:port")
    sweep.add_argument(
        "--restart", action="store_true", help="begin anew instead of going on where it was"
    )
    return sweep


def _sweep(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.sweep import sweep_document
    from sparqle_tvm.studies.sweep import run_sweep

    result = run_sweep(
        _points(arguments),
        arguments.out,
        workers=arguments.workers,
        scheduler=arguments.scheduler,
        restart=arguments.restart,
    )
    shared.show(
        arguments.json,
        lambda: sweep_document(result, arguments.out),
        lambda: _summary(result, arguments.out),
    )


def _kept(arguments: argparse.Namespace) -> str:
    from pathlib import Path

    from sparqle_tvm.studies.sweep.checkpoint import SUFFIX

    kept = Path(f"{arguments.out}{SUFFIX}")
    if not kept.exists():
        return "nothing was kept"
    return f"finished points are kept in {kept}; the same command goes on from there"


def _points(arguments: argparse.Namespace) -> Sweep:
    from sparqle_tvm.studies.sweep import Sweep, parse_axis, read_sweep

    if arguments.points and (arguments.axis or arguments.fix):
        raise InvalidArgumentError("give either a TOML file or --axis and --fix, not both")
    if arguments.points:
        return read_sweep(arguments.points)
    axes = [parse_axis(axis) for axis in arguments.axis]
    if len(dict(axes)) < len(axes):
        raise InvalidArgumentError("--axis names the same axis twice")
    fixed = {}
    for text in arguments.fix:
        name, values = parse_axis(text)
        if len(values) != 1:
            raise InvalidArgumentError(f"--fix {text}: one value is fixed, {len(values)} are given")
        fixed[name] = values[0]
    return Sweep.grid(dict(axes), fixed)


def _summary(result: SweepResult, out: str) -> dict[str, Any]:
    return {
        "out": out,
        "points": len(result.results),
        "failed": result.failed,
        "rows": result.rows,
    }
