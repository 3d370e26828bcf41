"""``sparqle run``: a model on a text, measured and counted."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    run = shared.add_command(
        commands,
        "run",
        _run,
        folders=("dump",),
        help="run a model on a text, and count what split precision saves",
        description="Run a language model on a text with float, int8 and split int8 activations. "
        "Prints perplexity, whether the split form is exact, MSB sparsity, cycles and DRAM bytes.",
    )
    shared.add_model_argument(run)
    run.add_argument(
        "--text", metavar="FILE", help="UTF-8 text; prose of Python's documentation if not given"
    )
    run.add_argument("--tokens", type=int, default=512, help="how many tokens of the text")
    shared.add_target_argument(run, "accelerator to count for")
    shared.add_table_arguments(run)
    shared.add_engine_argument(
        run, "run the dense layers as simulated programs, or count them by formula (faster)"
    )
    run.add_argument(
        "--attention",
        choices=("int8", "float"),
        default="int8",
        help="how the int8 and the split model compute attention; int8 shows what it costs",
    )
    run.add_argument(
        "--kv",
        default="int8",
        metavar="STORAGE",
        help="how attention in int8 stores keys and values: int8, planes (exact, what is smaller), "
        "planes:F or planes:F,G (factors on the scales of keys and values), int6, int5, int4",
    )
    balance = run.add_mutually_exclusive_group()
    balance.add_argument(
        "--balance",
        choices=("array", "time", "none"),
        default="array",
        help="sort rows by their stored digits where that takes cycles off the array, or off the "
        "time of encoding and dense layers; results do not depend on it",
    )
    balance.add_argument(
        "--no-balance",
        action="store_const",
        const="none",
        dest="balance",
        default=argparse.SUPPRESS,
        help="leave all rows in their own order, as --balance none",
    )
    run.add_argument(
        "--database", metavar="DIR", help="use the schedules that sparqle tune put there"
    )
    run.add_argument(
        "--dump", metavar="DIR", help="write the split model's module after each phase there"
    )
    _add_calibration_arguments(run)
    return run


def _add_calibration_arguments(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--calibration",
        metavar="FILE",
        help="what sparqle calibrate wrote: chooses windows, and scale factors within a budget",
    )
    budget = run.add_mutually_exclusive_group()
    budget.add_argument(
        "--max-perplexity-increase", metavar="SHARE", help="what factors may lose: 1%% or 0.01"
    )
    budget.add_argument(
        "--target-msb-sparsity", metavar="SHARE", help="how sparse factors make the MSBs: 0.85"
    )
    budget.add_argument("--loss", choices=("none",), help="windows only, nothing lossy (default)")
    run.add_argument(
        "--loss-tokens",
        type=int,
        default=2048,
        help="how many tokens the loss of factors is measured on, at most",
    )


def _budget_of(arguments: argparse.Namespace) -> Any:
    """The budget, or None if none is given."""
    increase, sparsity = arguments.max_perplexity_increase, arguments.target_msb_sparsity
    if increase is None and sparsity is None and arguments.loss is None:
        return None
    from sparqle_tvm.calibration.budget import Budget, parse_share

    if increase is not None:
        return Budget("perplexity", parse_share(increase))
    return Budget() if sparsity is None else Budget("sparsity", parse_share(sparsity))


def _run(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.run import run_document
    from sparqle_tvm.studies.run import run_model
    from sparqle_tvm.target.accelerator import Accelerator

    table = shared.energy_table_of(arguments, Accelerator.from_target(arguments.target))
    result = run_model(
        arguments.model,
        arguments.text,
        arguments.tokens,
        arguments.target,
        engine=arguments.engine,
        attention=arguments.attention,
        kv=arguments.kv,
        balance=arguments.balance,
        database=arguments.database,
        calibration=arguments.calibration,
        budget=_budget_of(arguments),
        loss_tokens=arguments.loss_tokens,
        table=table,
        dump=arguments.dump,
    )
    shared.show(arguments.json, lambda: run_document(result), result.to_json)
