"""The published models on the presets, beside what the paper published for them.

Estimates of three models of billions of weights take some seconds, so the package keeps their
curves in ``report/data/paper.json``; ``benchmarks/compare_with_paper.py`` writes it, and
``docs/paper.md`` from it. A test holds both to what the formulas give.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import plain, typed
from sparqle_tvm.models.shapes import MODELS as SHAPES
from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, OwnMarkdown, Section, Table
from sparqle_tvm.report.paper import CITATION, MODELS, QUANTITIES, RANGES
from sparqle_tvm.report.paper_map import PaperMap, map_section
from sparqle_tvm.report.passes import LIMIT_NAMES, describe, figure
from sparqle_tvm.results.passes import PHASES
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.studies.savings import Curve, saving_curves, select
from sparqle_tvm.target.accelerator import PRESETS, Accelerator

SEQ = 2048
SPARSITIES = (0.0, 0.25, 0.5, 0.7, 0.9, 1.0)
SHOWN = (0.5, 0.7, 0.9, 1.0)
CONTEXTS = (2048, 32768)
BATCHES = (1, 16, 64)
_DIGITS = 4
_PART_NAMES = {"whole_model": "Whole model", "dense_layers": "Dense layers alone"}

WHY = (
    "Why the figures differ: the paper's array, memory, baseline and MSB sparsities are not known "
    "to us, so two different machines stand side by side, and nothing here reproduces the paper. "
    "Our baseline takes two dense passes on the same array and memory, so a prefill bound by "
    "computation can save up to half of its array's time; the rows of PEs wait for the slowest of "
    "them, softmax and norms stay on a vector unit that gains nothing, and most of the energy is "
    "DRAM's, where only activations shrink. Each scheme has tiles of its own, chosen by one rule: "
    "time first, so a part of the energy that prefill saves is that of other tiles, more or less "
    "of it from one size of buffers to the next; `sparqle estimate` says what is saved with the "
    "same tiles. In decode with one sequence every weight is read for a single token, at any MSB "
    "sparsity; what decode saves here is values of keys whose probability is zero, more of it the "
    "longer the context and the larger the batch. "
    "What the paper reports for decode needs a machine on which decode waits for its array or for "
    "its activations: more bandwidth for the same array, weights kept on chip, smaller weights and "
    "caches, or PE rows that do not share the columns of a product: on `sparqle/server` those save "
    "a third of the time of one sequence."
)


def published_curves(
    target: str | Accelerator, *, progress: Callable[[], None] = lambda: None
) -> list[Curve]:
    """Estimate the paper's models, prefill of `SEQ` tokens and decode after as many.

    `progress` is called after every model and phase.
    """
    curves: list[Curve] = []
    for model in MODELS:
        for phase in PHASES:
            curves += saving_curves(model, phase, seq=SEQ, target=target, sparsities=SPARSITIES)
            progress()
    return curves


@dataclass(frozen=True)
class DecodeSaving:
    """What a decode step of a published model saves on a preset, the whole model.

    Attributes
    ----------
    model, target : str
    context, batch : int
        Tokens before the one that is decoded, of each of so many sequences.
    latency, energy : float
        Saved shares of the baseline's.
    latency_alone : float
        `latency` where idle PE rows do not share the columns of a product (`rows_share_k`), for
        both schemes.
    """

    model: str
    target: str
    context: int
    batch: int
    latency: float
    energy: float
    latency_alone: float


def decode_savings(
    target: Accelerator, *, progress: Callable[[], None] = lambda: None
) -> list[DecodeSaving]:
    """Estimate decode of the paper's models for `CONTEXTS` and `BATCHES`."""
    found = []
    alone = replace(target, rows_share_k=False)
    for model in MODELS:
        for context, batch in itertools.product(CONTEXTS, BATCHES):
            shared, single = (
                estimate(
                    model,
                    "decode",
                    seq=context,
                    batch=batch,
                    target=machine,
                    schemes=("dense", "sparqle"),
                    same_tiles=False,
                ).saved("sparqle")
                for machine in (target, alone)
            )
            figures = shared.cycles, shared.energy.mid, single.cycles
            name = SHAPES[model].name
            found.append(DecodeSaving(name, target.name, context, batch, *figures))
            progress()
    return found


def to_json(found: Sequence[Curve] | Sequence[DecodeSaving]) -> list[dict[str, Any]]:
    """Plain data, shares rounded to a hundredth of a percent."""
    return [_rounded(plain(each)) for each in found]


def stored_curves(accelerator: Accelerator) -> list[Curve] | None:
    """The stored curves of a preset; None for an accelerator that has none."""
    if PRESETS.get(accelerator.name) != accelerator:
        return None
    found = _stored().get(accelerator.name)
    if found is None:
        return None
    return typed(found, list[Curve], "report/data/paper.json", ResultFileError)


def stored_decode() -> list[DecodeSaving]:
    """The stored savings of decode on all presets."""
    found = _stored()["decode"]
    return typed(found, list[DecodeSaving], "report/data/paper.json", ResultFileError)


def _stored() -> dict[str, Any]:
    text = files("sparqle_tvm.report").joinpath("data/paper.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def comparison_table(curves: Sequence[Curve], part: str, where: str) -> Table:
    """Our saving at several MSB sparsities beside the published range, and what would reach it.

    `curves` are `published_curves` on the accelerator named `where`; `part` is one of
    `results.passes.PARTS`.
    """
    rows = []
    for phase in PHASES:
        for quantity in QUANTITIES:
            published = RANGES[phase, quantity]
            for curve in select(curves, phase, part):
                at = {point.msb_sparsity: point.saved(quantity) for point in curve.points}
                rows.append(
                    {
                        "what": f"{phase}, {quantity}",
                        "model": curve.model,
                        "published_low": published.low,
                        "published_high": published.high,
                        **{f"saved_at_{s:g}": at[s] for s in SHOWN},
                        "measured_msb_sparsity": curve.measured.msb_sparsity,
                        "saved_measured": curve.measured.saved(quantity),
                        "needed_for_low": curve.needed(quantity, published.low),
                        "needed_for_high": curve.needed(quantity, published.high),
                    }
                )
    return Table(
        name=f"paper_{part}",
        title=f"{_PART_NAMES[part]} on {where}: saved against dense",
        columns=(
            Column("what", ""),
            Column("model", "model"),
            _share("published_low", "paper, from"),
            _share("published_high", "to"),
            *(_share(f"saved_at_{s:g}", f"s = {s:.0%}") for s in SHOWN),
            _share("saved_measured", "measured"),
            _share("measured_msb_sparsity", "at s ="),
            _share("needed_for_low", "s for the least", missing="none"),
            _share("needed_for_high", "for the most", missing="none"),
        ),
        rows=tuple(rows),
        note="s: MSB sparsity, the same in all layers. The last columns: which s would save the "
        f"least and the most that the paper reports (none: no s would). Paper: {CITATION}, the "
        "range over its models on its own array. Measured: the distribution measured on "
        "SmolLM2-135M, transferred to these models; nobody ran them here.",
    )


def decode_table(found: Sequence[DecodeSaving]) -> Table:
    """Decode of the whole model by context and batch, presets side by side."""
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for one in found:
        where = one.model, one.context, one.batch
        row = rows.setdefault(where, dict(zip(("model", "context", "batch"), where, strict=True)))
        for quantity in ("latency", "energy", "latency_alone"):
            row[f"{quantity}_{one.target}"] = getattr(one, quantity)
    short = {target: target.removeprefix("sparqle/") for target in PRESETS}
    return Table(
        name="paper_decode",
        title="Decode of one token by context and batch, whole model: saved against dense",
        columns=(
            Column("model", "model"),
            figure("context", "context", formats.grouped),
            figure("batch", "batch", formats.grouped),
            *(_share(f"latency_{t}", f"latency, {short[t]}") for t in short),
            *(_share(f"energy_{t}", f"energy, {short[t]}") for t in short),
            *(_share(f"latency_alone_{t}", f"latency, {short[t]}, rows alone") for t in short),
        ),
        rows=tuple(rows.values()),
        note="Measured digits and keys of SmolLM2-135M, transferred; beyond 8,192 tokens the share "
        "of live keys there. Rows alone: idle PE rows do not share the columns of a product "
        "(rows_share_k = false), under both schemes.",
        repeated=1,
    )


def limits_table(curves: Sequence[Curve], where: str) -> Table:
    """What limits the time of the split form, for every model and phase."""
    rows = [
        {"model": curve.model, "phase": curve.phase, **curve.limits}
        for phase in PHASES
        for curve in select(curves, phase, "whole_model")
    ]
    return Table(
        name="paper_limits",
        title=f"What limits the time of the split form on {where} (whole model, measured digits)",
        columns=(
            Column("phase", ""),
            Column("model", "model"),
            *(_share(limit, name) for limit, name in LIMIT_NAMES.items()),
        ),
        rows=tuple(rows),
        repeated=2,
    )


def _share(key: str, title: str, missing: str = "") -> Column:
    return figure(key, title, formats.percent, missing=missing)


def paper_document(
    curves: dict[str, list[Curve]],
    tables: dict[str, str],
    decode: Sequence[DecodeSaving],
    found_map: PaperMap | None = None,
) -> Document:
    """The comparison as a document: by preset the curves, and the name of their energy table.

    `decode` has longer contexts and larger batches, `found_map` says which other machines save as
    much.
    """
    sections = [
        Section(
            name,
            (
                f"{describe(PRESETS[name])}. Energy with the table {tables[name]}.",
                *(comparison_table(found, part, name) for part in _PART_NAMES),
                limits_table(found, name),
            ),
        )
        for name, found in curves.items()
    ]
    return Document(
        title="Beside the paper",
        subtitle=f"What our accelerators save with the models of {CITATION}, beside what the paper "
        f"reports for its own: prefill of {SEQ:,} tokens, and decode of one token after as many, "
        "one sequence. Written by `python benchmarks/compare_with_paper.py`.",
        sections=(
            Section("How to read it", (WHY, *_beyond(), PICTURE)),
            Section("Decode by context and batch", (decode_table(decode),)),
            *([] if found_map is None else [map_section(found_map, "paper_map.png")]),
            *sections,
        ),
    )


PICTURE = OwnMarkdown(
    "![Savings against MSB sparsity, with the paper's ranges as bands](paper.png)\n\n"
    "Whole model on `sparqle/edge`; stars are measured digits, thin lines the band of the energy."
)


def _beyond() -> Iterator[str]:
    """Which models were not made for as many tokens as decode has here."""
    for shape in (SHAPES[name] for name in MODELS):
        if shape.max_positions <= SEQ:
            yield (
                f"{shape.name} has {shape.max_positions:,} positions: decode of the token after "
                f"{SEQ:,} is beyond them, and shown to compare."
            )


def _rounded(data: Any) -> Any:
    if isinstance(data, float):
        return round(data, _DIGITS)
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, (list, tuple)) else data
