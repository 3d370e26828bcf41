"""``sparqle pareto``: loss against cycles and energy for a row of budgets."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    pareto = shared.add_command(
        commands,
        "pareto",
        _pareto,
        files=("picture",),
        epilog=shared.examples(
            "calibrate --tokens 4096 --out calib.npz",
            "pareto --calibration calib.npz --picture pareto.png",
        ),
        help="loss against cycles and energy, for a row of budgets",
        description="Measure what coarser scales lose (perplexity and KL divergence against int8, "
        "with standard errors) and count what they save, for no loss and a row of budgets.",
    )
    shared.add_model_argument(pareto)
    pareto.add_argument(
        "--calibration", metavar="FILE", required=True, help="what sparqle calibrate wrote"
    )
    pareto.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8 text that calibration did not see; if not given, the first half of the "
        "built-in prose",
    )
    pareto.add_argument(
        "--calibration-text",
        metavar="FILE",
        help="UTF-8 text that calibration ran; if not given, the second half of the built-in prose",
    )
    pareto.add_argument(
        "--tokens", type=int, default=4096, help="how many tokens to measure losses on"
    )
    shared.add_target_argument(pareto, "accelerator to count for")
    pareto.add_argument(
        "--max-perplexity-increase",
        metavar="SHARE",
        nargs="+",
        help="budgets beside no loss, as 1%% or 0.01; if not given, 0.25%% to 4%%",
    )
    shared.add_importance_argument(
        pareto, "what errors are weighed by; fisher if the calibration has gradients"
    )
    pareto.add_argument("--picture", metavar="FILE", help="draw it (.png, .svg or .pdf)")
    return pareto


def _pareto(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.pictures import drawing, require_matplotlib, require_picture_name

    if arguments.picture:
        require_picture_name(arguments.picture)
        require_matplotlib()
    from sparqle_tvm.calibration.budget import Budget, parse_share
    from sparqle_tvm.files import plain
    from sparqle_tvm.report.calibration import pareto_document
    from sparqle_tvm.results.losses import KIND
    from sparqle_tvm.studies.pareto import BUDGETS, pareto

    budgets: tuple[Budget, ...] = BUDGETS
    if arguments.max_perplexity_increase:
        limits = [parse_share(text) for text in arguments.max_perplexity_increase]
        budgets = (Budget(), *(Budget("perplexity", limit) for limit in limits))
    result = pareto(
        arguments.calibration,
        arguments.model,
        arguments.text,
        arguments.target,
        tokens=arguments.tokens,
        seen_text=arguments.calibration_text,
        budgets=budgets,
        importance=arguments.importance,
    )
    if arguments.picture:
        drawing("pareto").write_pareto(result, arguments.picture)
    shared.show(
        arguments.json, lambda: pareto_document(result), lambda: {"kind": KIND, **plain(result)}
    )
