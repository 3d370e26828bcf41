"""``sparqle tune``: better schedules for the dense layers of a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sparqle_tvm.commands._shared import (
    DefaultsFormatter,
    add_output_arguments,
    add_table_arguments,
    check_writable,
    emit_json,
    energy_table_of,
)

if TYPE_CHECKING:
    from sparqle_tvm.tuning import TuningResult


def add(commands: Any) -> None:
    """Add the command to the parser."""
    tune = commands.add_parser(
        "tune",
        help="search better schedules for the dense layers of a model",
        description="Search tiles, loop order, buffers and dataflow of a model's dense layers with "
        "TVM's MetaSchedule and the simulator, for prefill and decode. The best schedules are kept "
        "in a folder for sparqle run --database. Killed and started again, it goes on from there.",
        formatter_class=DefaultsFormatter,
    )
    tune.add_argument(
        "--model", default="smollm2", help="smollm2 (fetched on first use) or a GGUF file"
    )
    tune.add_argument("--target", default="sparqle/edge", help="accelerator")
    tune.add_argument(
        "--database", metavar="DIR", default="sparqle-tuning", help="where schedules are kept"
    )
    tune.add_argument(
        "--trials",
        type=int,
        default=200,
        help="schedules to measure over all layers, those in the database included",
    )
    tune.add_argument(
        "--objective",
        default="latency",
        help="latency, energy, edp, or weighted:W with a share W of latency",
    )
    tune.add_argument("--tokens", type=int, default=512, help="tokens of the prefill")
    tune.add_argument(
        "--calibration", metavar="FILE", help="draw activations from what sparqle calibrate wrote"
    )
    tune.add_argument(
        "--density",
        type=float,
        default=0.3,
        help="share of stored MSB digits without it, and of layers it does not know",
    )
    tune.add_argument("--draws", type=int, default=1, help="sets of activations to measure with")
    tune.add_argument(
        "--percentile", type=float, help="of the cost over the draws; the mean if not given"
    )
    tune.add_argument(
        "--engine",
        choices=("simulator", "analytical"),
        default="simulator",
        help="measure with simulated programs, or by formula (faster, fewer kinds of schedules)",
    )
    tune.add_argument(
        "--baseline", action="store_true", help="tune the baseline of two dense passes as well"
    )
    tune.add_argument("--seed", type=int, default=0, help="of all random numbers")
    add_table_arguments(tune)
    add_output_arguments(tune)
    tune.set_defaults(command=_tune)


def _tune(arguments: argparse.Namespace) -> None:
    check_writable(arguments.json)
    import tvm

    import sparqle_tvm
    from sparqle_tvm.calibration.apply import as_calibration
    from sparqle_tvm.studies.count import OUTPUT_LABEL
    from sparqle_tvm.studies.run import model_path
    from sparqle_tvm.target.accelerator import Accelerator

    accelerator = Accelerator.from_target(arguments.target)
    table = energy_table_of(arguments, accelerator)
    calibration = None if arguments.calibration is None else as_calibration(arguments.calibration)
    model = model_path(arguments.model)
    imported = sparqle_tvm.frontend.from_gguf(model, activations="int8")
    result = sparqle_tvm.tune(
        # What a run calls; the functions with a cache have the same layers.
        tvm.IRModule({name: imported.mod[name] for name in ("hidden", "head")}),
        accelerator,
        trials=arguments.trials,
        objective=arguments.objective,
        work_dir=arguments.database,
        calibration=calibration,
        seed=arguments.seed,
        rows=sorted({arguments.tokens, 1}, reverse=True),
        density=arguments.density,
        draws=arguments.draws,
        percentile=arguments.percentile,
        engine=arguments.engine,
        table=table,
        schemes=("sparqle", "dense") if arguments.baseline else ("sparqle",),
        single=(OUTPUT_LABEL,),
    )
    if arguments.json != "-":
        _print(result)
    if arguments.json:
        emit_json(arguments.json, result.to_json())


def _print(result: TuningResult) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    settings = result.settings
    table = Table(
        title=f"Schedules tuned for {settings.objective} on {settings.accelerator.name}",
        title_justify="left",
        box=SIMPLE,
    )
    table.add_column("M x N x K", no_wrap=True)
    for name in ("layers", "cycles", "", "energy", "tile"):
        side: Any = "left" if name == "tile" else "right"
        table.add_column(name, justify=side, no_wrap=True)
    for found in result.tasks:
        before, after = found.default_cost, found.best_cost
        table.add_row(
            found.task.name,
            str(found.task.weight),
            f"{after.cycles:,.0f}",
            f"{after.cycles / before.cycles - 1:+.1%}",
            f"{after.energy_pj / before.energy_pj - 1:+.1%}",
            " x ".join(map(str, found.best.tile)),
        )
    console.print(table)
    for found in result.tasks:
        if found.message:
            console.print(f"{found.task.name}: {found.message}", style="yellow")
    before, after = result.total("default"), result.total("best")
    console.print(
        f"All layers: {before.cycles:,.0f} -> {after.cycles:,.0f} cycles "
        f"({after.cycles / before.cycles - 1:+.1%}), {before.energy_pj * 1e-6:,.0f} -> "
        f"{after.energy_pj * 1e-6:,.0f} uJ ({after.energy_pj / before.energy_pj - 1:+.1%}). "
        f"Use them: sparqle run --database {result.work_dir}",
        highlight=False,
    )
