"""The documents of what commands wrote as JSON: each says of which kind it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import read_json, typed
from sparqle_tvm.report.build import build_report
from sparqle_tvm.report.calibration import calibration_document, pareto_document
from sparqle_tvm.report.document import Document
from sparqle_tvm.report.estimate import estimate_document
from sparqle_tvm.report.generation import generation_document
from sparqle_tvm.report.pivot import crossing_document, pivot_document
from sparqle_tvm.report.sweep import outcome, sweep_document
from sparqle_tvm.report.target import check_document
from sparqle_tvm.report.tuning import tuning_document
from sparqle_tvm.results import analysis, calibration, estimate, generation, losses, run, target
from sparqle_tvm.results import tuning as tuned
from sparqle_tvm.results.sensitivity import Sensitivity
from sparqle_tvm.studies import sweep

Reader = Callable[[Mapping[str, Any], object], Document]


def _estimates(data: Mapping[str, Any], where: object) -> Document:
    several = data.get("estimates", [data])
    if not isinstance(several, list) or not all(isinstance(one, dict) for one in several):
        raise ResultFileError(f"{where}: $.estimates is no list of estimates")
    found = [estimate.Estimate.from_json(one, where) for one in several]
    changes = [
        Sensitivity.from_json(base, one["sensitivity"], where)
        for base, one in zip(found, several, strict=True)
        if "sensitivity" in one
    ]
    if not found:
        raise ResultFileError(f"{where}: there is no estimate in it")
    return estimate_document(found, changes)


def _sweep(data: Mapping[str, Any], where: object) -> Document:
    result, out, pivot = sweep.read_result(data, where)
    if pivot is not None:
        return pivot_document(pivot, outcome(result, out))
    return sweep_document(result, out)


def _generation(data: Mapping[str, Any], where: object) -> Document:
    return generation_document(generation.Generation.from_json(data, where))


def _calibration(data: Mapping[str, Any], where: object) -> Document:
    content = {key: value for key, value in data.items() if key not in ("kind", "out")}
    found = typed(content, calibration.CalibrationSummary, where, ResultFileError)
    return calibration_document(found, str(data.get("out", "")))


def _pareto(data: Mapping[str, Any], where: object) -> Document:
    content = {key: value for key, value in data.items() if key != "kind"}
    return pareto_document(typed(content, losses.ParetoResult, where, ResultFileError))


READERS: Mapping[str, Reader] = {
    run.KIND: lambda data, where: build_report(run.RunResult.from_json(data, where)),
    analysis.KIND: lambda data, where: build_report(analysis.Analysis.from_json(data, where)),
    generation.KIND: _generation,
    calibration.KIND: _calibration,
    losses.KIND: _pareto,
    estimate.KIND: _estimates,
    estimate.KIND_OF_SEVERAL: _estimates,
    sweep.KIND: _sweep,
    sweep.KIND_OF_CROSSINGS: lambda data, where: crossing_document(
        *sweep.read_crossings(data, where)
    ),
    tuned.KIND: lambda data, where: tuning_document(tuned.TuningSummary.from_json(data, where)),
    target.KIND: lambda data, where: check_document(target.TargetCheck.from_json(data, where)),
}
"""How the JSON of each kind becomes a document."""


def load_document(path: str | os.PathLike[str]) -> tuple[str, Document]:
    """Read the JSON that any command wrote; give its kind, one of `READERS`, and its document.

    Raises
    ------
    ResultFileError
        If there is no such file, it is not JSON, of no kind that has a page, or not whole.
    """
    data = read_json(path, ResultFileError, "what a sparqle command wrote with --json")
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in READERS:
        raise ResultFileError(
            f"{path} is of the kind {kind!r}; there are pages of {', '.join(READERS)}, as commands "
            "of this release write them with --json"
        )
    return kind, READERS[kind](data, path)
