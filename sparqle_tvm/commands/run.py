"""``sparqle run``: a model on a text, or on arrays, measured and counted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from sparqle_tvm.commands import _shared as shared


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    run = shared.add_command(
        commands,
        "run",
        _run,
        folders=("dump",),
        usage="sparqle run [options]",  # argparse cannot break a group of exclusive ones
        epilog=shared.examples(
            "run --tokens 64",
            "run --tokens 512 --json run.json",
            "run --model model.onnx --shape input_ids=1x16",
        ),
        help="run a model, and count what split precision saves",
        description="Run a language model (GGUF) on a text with float, int8 and split int8 "
        "activations, or any quantized model (ONNX, PyTorch) on arrays. Prints whether the split "
        "form is exact, MSB sparsity, cycles, DRAM bytes and energy, of a language model also "
        "perplexity.",
    )
    run.add_argument(
        "--model",
        default="smollm2",
        help="smollm2 (fetched on first use), a GGUF file, model.onnx, or torch.export's model.pt2",
    )
    _add_input_arguments(run)
    run.add_argument(
        "--text", metavar="FILE", help="UTF-8 text; prose of Python's documentation if not given"
    )
    run.add_argument("--tokens", type=int, default=512, help="how many tokens of the text")
    shared.add_target_argument(run, "accelerator to count for")
    shared.add_table_arguments(run)
    shared.add_engine_argument(
        run, "run the dense layers as simulated programs, or count them by formula (faster)"
    )
    shared.add_attention_argument(
        run,
        "how the int8 and the split model compute attention; int8, which a text runs with if not "
        "told otherwise, shows what it costs",
    )
    shared.add_kv_argument(run)
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
    shared.add_cache_argument(run)
    return run


def _add_input_arguments(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--inputs",
        metavar="FILE",
        help="ONNX, PyTorch: .npz file with the inputs by name; those that are missing are random",
    )
    run.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1x128",
        help="ONNX, PyTorch: the shape of a random input, where the model leaves it open; their "
        "sparsity is no measurement",
    )
    run.add_argument("--seed", type=int, default=0, help="ONNX, PyTorch: of random inputs")


# Options of `run` that a model of either kind has not.
_OF_TEXTS = (
    *("text", "tokens", "kv", "calibration", "max_perplexity_increase", "target_msb_sparsity"),
    *("loss", "loss_tokens", "dump", "no_cache"),
)
_OF_ARRAYS = ("inputs", "shape", "seed")


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
    from sparqle_tvm.studies.inputs import is_language_model
    from sparqle_tvm.target.accelerator import Accelerator

    of_text = is_language_model(arguments.model)
    _refuse(arguments, _OF_ARRAYS if of_text else _OF_TEXTS, of_text)
    table = shared.energy_table_of(arguments, Accelerator.from_target(arguments.target))
    (_run_text if of_text else _run_arrays)(arguments, table)


def _refuse(arguments: argparse.Namespace, names: Sequence[str], of_text: bool) -> None:
    """Refuse options that a model of this kind does not listen to."""
    from sparqle_tvm.errors import InvalidArgumentError

    parser = argparse.ArgumentParser()
    add(parser.add_subparsers())
    default = vars(parser.parse_args(["run"]))
    for name in names:
        if getattr(arguments, name) != default[name]:
            kind = "a GGUF model runs on a text" if of_text else "this model runs on arrays"
            raise InvalidArgumentError(
                f"--{name.replace('_', '-')}: {kind}, and has no such option"
            )


def _run_arrays(arguments: argparse.Namespace, table: Any) -> None:
    from sparqle_tvm.report.analysis import analysis_document
    from sparqle_tvm.studies.analyze import analyze
    from sparqle_tvm.studies.call_inputs import parse_shapes, read_arrays
    from sparqle_tvm.studies.inputs import load_module

    shapes = parse_shapes(arguments.shape)
    inputs = read_arrays(arguments.inputs) if arguments.inputs is not None else {}
    result = analyze(
        load_module(arguments.model),
        inputs,
        arguments.target,
        shapes=shapes,
        seed=arguments.seed,
        engine=arguments.engine,
        table=table,
        attention=arguments.attention or "float",
        balance=arguments.balance,
        database=arguments.database,
        progress=True,
    )
    shared.show(arguments.json, lambda: analysis_document(result), result.to_json)


def _run_text(arguments: argparse.Namespace, table: Any) -> None:
    from sparqle_tvm.report.run import run_document
    from sparqle_tvm.studies.run import run_model

    result = run_model(
        arguments.model,
        arguments.text,
        arguments.tokens,
        arguments.target,
        engine=arguments.engine,
        attention=arguments.attention or "int8",
        kv=arguments.kv,
        balance=arguments.balance,
        database=arguments.database,
        calibration=arguments.calibration,
        budget=_budget_of(arguments),
        loss_tokens=arguments.loss_tokens,
        table=table,
        dump=arguments.dump,
        cache=shared.cache_of(arguments),
        beside=True,
    )
    shared.show(arguments.json, lambda: run_document(result), result.to_json)
