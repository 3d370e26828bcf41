"""``sparqle tune``: better schedules for the dense layers of a model."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.errors import InvalidArgumentError


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    tune = shared.add_command(
        commands,
        "tune",
        _tune,
        folders=("database",),
        kept=lambda arguments: (
            f"measured schedules are kept in {arguments.database}; the same command goes on from "
            "there"
        ),
        epilog=shared.examples(
            "tune --trials 200 --database schedules",
            "run --database schedules",
            "tune --model llama3-8b --engine analytical --tokens 2048",
        ),
        help="search better schedules for the dense layers of a model",
        description="Search tiles, loop order, buffers and dataflow of a model's dense layers with "
        "TVM's MetaSchedule and the simulator, for prefill and decode. The best schedules are kept "
        "in a folder for sparqle run --database. Killed and started again, it goes on from there.",
    )
    tune.add_argument(
        "--model",
        default="smollm2",
        metavar="NAME|FILE",
        help="smollm2 (fetched on first use), a GGUF file, or what sparqle estimate takes: then "
        "layers are tuned by their sizes",
    )
    shared.add_target_argument(tune, "accelerator")
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
    shared.add_engine_argument(
        tune, "measure with simulated programs, or by formula (faster, fewer kinds of schedules)"
    )
    tune.add_argument(
        "--baseline", action="store_true", help="tune the baseline of two dense passes as well"
    )
    tune.add_argument("--seed", type=int, default=0, help="of all random numbers")
    shared.add_workers_arguments(tune)
    shared.add_table_arguments(tune)
    return tune


def _tune(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.calibration.apply import as_calibration
    from sparqle_tvm.frontend import from_gguf
    from sparqle_tvm.frontend.shape import model_shape
    from sparqle_tvm.report.tuning import tuning_document
    from sparqle_tvm.results.tuning import TuningSummary
    from sparqle_tvm.studies.count import OUTPUT_LABEL
    from sparqle_tvm.studies.inputs import functions_of_a_run, model_path, runs
    from sparqle_tvm.target.accelerator import Accelerator
    from sparqle_tvm.tuning import tune
    from sparqle_tvm.tuning.measure import ActivationData, Objective

    if arguments.trials < 1 or arguments.tokens < 1:
        raise InvalidArgumentError(
            f"{arguments.trials} trials and {arguments.tokens} tokens: both must be positive"
        )
    # What is wrong with these is said before the model is read.
    Objective.parse(arguments.objective)
    ActivationData(
        arguments.density,
        draws=arguments.draws,
        percentile=arguments.percentile,
        seed=arguments.seed,
    )
    accelerator = Accelerator.from_target(arguments.target)
    table = shared.energy_table_of(arguments, accelerator)
    calibration = None if arguments.calibration is None else as_calibration(arguments.calibration)
    if runs(arguments.model):
        imported = from_gguf(model_path(arguments.model), activations="int8")
        layers: Any = functions_of_a_run(imported)
    else:
        layers = model_shape(arguments.model)
    result = tune(
        layers,
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
        workers=arguments.workers,
        scheduler=arguments.dask,
    )
    shared.show(
        arguments.json,
        lambda: tuning_document(TuningSummary.from_json(result.to_json())),
        result.to_json,
    )
