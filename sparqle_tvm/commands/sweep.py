"""``sparqle sweep``: many estimates, over a grid or a list of points."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from sparqle_tvm.studies.sweep import Sweep
    from sparqle_tvm.studies.sweep.points import Value

DESCRIPTION = """Run `sparqle estimate` for every point of a grid or a list, on all cores or on a
Dask cluster. Names are the options of `sparqle estimate`
(model, phase, seq, batch, msb_sparsity, kv_bits, target, node, memory) and the
fields of the accelerator (sparqle target show). A sweep that was killed goes
on where it was when it is started again. Points without an estimate are listed
with the reason; the exit code is 2 if no point has one.

What is saved is shown as pivot tables and heat maps over the two names with
most values; --pivot shows another figure over two names of yours. --find looks
for the value of a field from which on a figure reaches a level, by a scan and
bisection, for every combination of the axes; it says if there is none, or more
than one. Figures: time_saved, energy_saved, dram_saved, seconds, joules,
dense_seconds, dense_joules, of the whole model; with dense_layers_ before them
of the dense layers; and every column of the table.
"""

EXAMPLES = """examples:
  sparqle sweep --model llama2-7b --axis seq=128,512,2048 \\
    --axis msb_sparsity=0:0.9:10 --html sweep.html
  sparqle sweep sweep.toml --out sweep.json --workers 8
  sparqle sweep sweep.toml --out sweep.csv --dask tcp://head:8786

  How much time is saved over prompt length and bandwidth:
  sparqle sweep --axis seq=128,512,2048 \\
    --axis dram_bytes_per_cycle=4,8,16,32,64 \\
    --pivot seq dram_bytes_per_cycle time_saved --html pivot.html

  From which bandwidth on 16 % of the time is saved, for three array widths:
  sparqle sweep --axis lanes=8,16,32 --find time_saved=16% \\
    --over dram_bytes_per_cycle

  From which batch on decode gains:
  sparqle sweep --phase decode --find time_saved=1% --over batch

  The sparsity at which the dense layers break even:
  sparqle sweep --find dense_layers_time_saved=0 --over msb_sparsity=0:1
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
    shortcuts = {"model": str, "target": str, "phase": str, "seq": int, "batch": int}
    for name, kind in shortcuts.items():
        sweep.add_argument(
            f"--{name}", type=kind, metavar=name.upper(), help=f"the same as --fix {name}="
        )
    sweep.set_defaults(shortcuts=tuple(shortcuts))
    sweep.add_argument(
        "--pivot",
        nargs=3,
        metavar=("ROWS", "COLS", "VALUE"),
        help="show a figure over two names of the sweep; a table for each combination of the rest",
    )
    sweep.add_argument(
        "--find",
        metavar="VALUE=LEVEL",
        help="where does a figure reach a level (16%% or 0.16)? What is saved: at least; "
        "seconds, joules, bytes and cycles: at most",
    )
    sweep.add_argument(
        "--over",
        metavar="FIELD[=VALUES]",
        help="the number that --find changes: batch, seq, msb_sparsity, dram_bytes_per_cycle or "
        "any other field; its scan begins with the values given (first:last or a,b,c), else with a "
        "range around what it is",
    )
    sweep.add_argument(
        "--out",
        metavar="FILE",
        help="write the table of all points, .csv or .json; a file beside it keeps what is done",
    )
    shared.add_workers_arguments(sweep)
    sweep.add_argument(
        "--restart", action="store_true", help="begin anew instead of going on where it was"
    )
    shared.add_document_arguments(sweep)
    return sweep


def _sweep(arguments: argparse.Namespace) -> None:
    if bool(arguments.find) != bool(arguments.over):
        raise InvalidArgumentError("--find VALUE=LEVEL and --over FIELD belong together")
    if arguments.find:
        _find(arguments)
    else:
        _run(arguments)


def _find(arguments: argparse.Namespace) -> None:
    """Look for a level."""
    from sparqle_tvm.report.pivot import crossing_document
    from sparqle_tvm.studies.sweep import (
        Scan,
        crossings_json,
        find_crossings,
        parse_find,
        parse_over,
        quantity,
    )

    for option in ("pivot", "out", "dask", "restart"):
        if getattr(arguments, option):
            raise InvalidArgumentError(f"--find does not go with --{option}")
    name, level = parse_find(arguments.find)
    scan = Scan(quantity(name), level, *parse_over(arguments.over))
    found = find_crossings(scan, _points(arguments), workers=arguments.workers)
    shared.deliver(
        arguments,
        lambda: crossing_document(scan, found),
        lambda: crossings_json(scan, found),
    )


def _run(arguments: argparse.Namespace) -> None:
    """Estimate all points."""
    from sparqle_tvm.report.pivot import pivot_document
    from sparqle_tvm.report.sweep import outcome, sweep_document
    from sparqle_tvm.studies.sweep import pivot, quantity, require_axes, run_sweep, sweep_json

    points, out = _points(arguments), arguments.out or ""
    if arguments.pivot:
        rows, cols, value = arguments.pivot
        shown = quantity(value)
        require_axes(points.names, rows, cols)
    result = run_sweep(
        points,
        out,
        workers=arguments.workers,
        scheduler=arguments.dask,
        restart=arguments.restart,
    )
    if not arguments.pivot:
        shared.deliver(
            arguments, lambda: sweep_document(result, out), lambda: sweep_json(result, out)
        )
        return
    table = pivot(result, rows, cols, shown)
    shared.deliver(
        arguments,
        lambda: pivot_document(table, outcome(result, out)),
        lambda: sweep_json(result, out, table),
    )


def _kept(arguments: argparse.Namespace) -> str:
    from sparqle_tvm.studies.sweep.checkpoint import kept_beside

    kept = kept_beside(arguments.out or "")
    if not kept.exists():
        return "nothing was kept"
    return f"finished points are kept in {kept}; the same command goes on from there"


def _points(arguments: argparse.Namespace) -> Sweep:
    from sparqle_tvm.studies.sweep import Sweep, parse_axis, read_sweep

    given = {name: getattr(arguments, name) for name in arguments.shortcuts}
    fixed: dict[str, Value] = {name: value for name, value in given.items() if value is not None}
    if arguments.points and (arguments.axis or arguments.fix or fixed):
        raise InvalidArgumentError("give either a TOML file or --axis and --fix, not both")
    if arguments.points:
        return read_sweep(arguments.points)
    axes = [parse_axis(axis) for axis in arguments.axis]
    if len(dict(axes)) < len(axes):
        raise InvalidArgumentError("--axis names the same axis twice")
    for text in arguments.fix:
        name, values = parse_axis(text)
        if len(values) != 1:
            raise InvalidArgumentError(f"--fix {text}: one value is fixed, {len(values)} are given")
        if name in fixed:
            raise InvalidArgumentError(f"--fix {text}: {name} is given as --{name}, too")
        fixed[name] = values[0]
    return Sweep.grid(dict(axes), fixed)
