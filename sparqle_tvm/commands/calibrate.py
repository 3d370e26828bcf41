"""``sparqle calibrate``: text through a model, statistics into a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.errors import InvalidArgumentError


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    calibrate = shared.add_command(
        commands,
        "calibrate",
        _calibrate,
        files=("out",),
        kept=lambda arguments: f"{arguments.out} is as it was; a calibration begins anew",
        epilog=shared.examples(
            "calibrate --tokens 1024 --out calib.npz",
            "run --calibration calib.npz --max-perplexity-increase 1%",
        ),
        help="learn from text how coarse scales may be, for sparser MSBs",
        description="Run text through a model with int8 activations, and write what the choice of "
        "scale factors needs: for sparqle run --calibration and for sparqle pareto.",
    )
    shared.add_model_argument(calibrate)
    calibrate.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8 text; if not given, the half of the built-in prose that sparqle run does not "
        "begin with",
    )
    calibrate.add_argument("--tokens", type=int, default=4096, help="how many tokens of the text")
    calibrate.add_argument("--out", metavar="FILE", default="calib.npz", help="file to write")
    shared.add_attention_argument(calibrate, "how attention is computed meanwhile", default="float")
    shared.add_importance_argument(
        calibrate,
        "what errors are weighed by: the weights and outputs, or gradients too (needs torch)",
    )
    return calibrate


def _calibrate(arguments: argparse.Namespace) -> None:
    if Path(arguments.out).suffix != ".npz":
        raise InvalidArgumentError(f"{arguments.out}: the file has to end in .npz")
    from sparqle_tvm.files import plain
    from sparqle_tvm.report.calibration import calibration_document
    from sparqle_tvm.results.calibration import KIND, CalibrationSummary
    from sparqle_tvm.studies.calibrate import calibrate

    calibration = calibrate(
        *(arguments.model, arguments.text, arguments.tokens),
        importance=arguments.importance,
        attention=arguments.attention,
    )
    calibration.save(arguments.out)
    found = CalibrationSummary.of(calibration)
    shared.show(
        arguments.json,
        lambda: calibration_document(found, arguments.out),
        lambda: {"kind": KIND, "out": arguments.out, **plain(found)},
    )
