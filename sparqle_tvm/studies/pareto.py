"""Loss against cycles and energy, for no loss and a row of budgets."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

from sparqle_tvm.calibration.budget import Budget, choose
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.loss import LossIncrease, compare
from sparqle_tvm.calibration.search import Importance, Search
from sparqle_tvm.progress import progress_bar
from sparqle_tvm.results.losses import Loss, ParetoPoint, ParetoResult
from sparqle_tvm.results.passes import PassResult
from sparqle_tvm.target.accelerator import Accelerator

if TYPE_CHECKING:
    import tvm

    from sparqle_tvm.frontend import ImportedModel
    from sparqle_tvm.target.cost.energy_table import EnergyTable

BUDGETS = (
    Budget(),
    Budget("perplexity", 0.0025),
    Budget("perplexity", 0.005),
    Budget("perplexity", 0.01),
    Budget("perplexity", 0.02),
    Budget("perplexity", 0.04),
)
"""What `pareto` tries by default."""


def pareto(
    calibration: Calibration | str | PathLike[str],
    model: str | PathLike[str] | ImportedModel = "smollm2",
    text: str | PathLike[str] | None = None,
    accelerator: str | Accelerator | tvm.target.Target = "sparqle/edge",
    *,
    tokens: int = 4096,
    seen_text: str | PathLike[str] | None = None,
    budgets: Sequence[Budget] = BUDGETS,
    importance: Importance = "weights",
    table: EnergyTable | None = None,
    progress: bool = True,
) -> ParetoResult:
    """Measure what every budget loses, and count what it saves.

    Parameters
    ----------
    calibration : Calibration or path
        Of this model.
    model : str, path or ImportedModel
        As for `calibrate`.
    text : path, optional
        Text that calibration did not see; by default the first half of the built-in prose.
    accelerator : str, Accelerator or tvm.target.Target
        What cycles are counted for, by formula, rows balanced where it pays.
    tokens : int
        Tokens that the loss is measured on, in chunks of 512; the first chunk is the prefill that
        is counted. At least 2.
    seen_text : path, optional
        The text that calibration ran, of which at most 2,048 tokens are measured, too; by default
        the second half of the built-in prose.
    budgets : sequence of Budget
        What to try.
    importance : {"weights", "fisher"}
        What errors are weighed by.
    table : EnergyTable, optional
        What energy is counted with; by default 7 nm and the accelerator's memory.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    SparqleError
        One of its classes: a calibration of another model, a budget that cannot be met, a bad
        text or target.
    """
    from sparqle_tvm.calibration.apply import as_calibration
    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.studies.calibrate import MEASURED_TOKENS
    from sparqle_tvm.studies.count import count_phases
    from sparqle_tvm.studies.evaluation import transformer_shape
    from sparqle_tvm.studies.inputs import (
        check_text,
        checked_accelerator,
        import_model,
        read_tokens,
    )

    chosen = checked_accelerator(accelerator, tokens)
    known = as_calibration(calibration)
    for path in (text, seen_text):
        check_text(path, tokens)
    imported = import_model(model, progress=progress)
    name, heldout = read_tokens(imported, text, tokens, heldout=True)
    seen_name, seen = read_tokens(imported, seen_text, min(tokens, MEASURED_TOKENS))
    search = Search(known, importance=importance)
    selections = [choose(search, budget, known.measured) for budget in budgets]
    count = (len(heldout) + len(seen)) * (1 + len(selections))
    with progress_bar(progress=progress, total=count, desc="compile", unit="token") as bar:
        choosable = ChoosableModel(imported.mod)
        known.check(choosable.collector.digests, imported.name)
        bar.set_description("measure")
        references = [choosable.loss(ids, progress=bar.update) for ids in (heldout, seen)]
        points = []
        for budget, selection in zip(budgets, selections, strict=True):
            losses, encodings = [], []
            for ids, reference in zip((heldout, seen), references, strict=True):
                found = choosable.loss(
                    ids, selection, reference=reference, count=ids is heldout, progress=bar.update
                )
                losses.append(compare(reference, found))
                encodings.append(choosable.encodings)
            shape = transformer_shape(imported.config)
            prefill, _ = count_phases(encodings[0], shape, chosen, table=table)
            points.append(_point(budget, losses, prefill))
    return ParetoResult(
        model_name=imported.name,
        accelerator=chosen.name,
        importance=importance,
        prefill_tokens=min(tokens, 512),
        heldout_tokens=len(heldout),
        calibration_tokens=len(seen),
        heldout_text=name,
        calibration_text=seen_name,
        points=tuple(points),
    )


def _point(budget: Budget, losses: Sequence[LossIncrease], prefill: PassResult) -> ParetoPoint:
    found = prefill.schemes["sparqle"]
    saved = prefill.saved("sparqle", "dense_layers")
    return ParetoPoint(
        budget=str(budget),
        msb_sparsity=prefill.msb_sparsity,
        mma_cycles=found.mma_cycles,
        dense_cycles=found.dense_layers.cycles,
        mma_reduction=found.mma_saved or 0.0,
        cycles_reduction=saved.cycles,
        model_cycles_reduction=prefill.saved("sparqle").cycles,
        energy_joules=found.dense_layers.energy.joules.mid,
        energy_reduction=saved.energy.mid,
        heldout=Loss.of(losses[0]),
        calibration=Loss.of(losses[1]),
    )
