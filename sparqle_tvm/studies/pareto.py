"""Loss against cycles and energy, for no loss and a row of budgets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sparqle_tvm.calibration.budget import Budget, choose
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.loss import LossIncrease, compare
from sparqle_tvm.calibration.search import Importance, Search
from sparqle_tvm.errors import InvalidArgumentError, TargetError
from sparqle_tvm.files import replacing
from sparqle_tvm.numerics.integers import require_int8
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


@dataclass(frozen=True)
class ParetoPoint:
    """One budget: what it loses and what it saves.

    Attributes
    ----------
    budget : str
        In words.
    msb_sparsity : float
        MAC-weighted share of zero MSBs in the prefill that is counted, 0 to 1.
    heldout, calibration : LossIncrease
        Against int8, on text that calibration did not see and on its own.
    mma_cycles, dense_cycles : int
        Cycles of the array, and of the dense layers with encoding and memory, in the prefill.
    mma_reduction, cycles_reduction, model_cycles_reduction : float
        Shares of the dense baseline's that are saved: cycles of the array, of the dense layers,
        of the whole model.
    energy_joules, energy_reduction : float
        Energy of the dense layers, and the share that is saved.
    """

    budget: str
    msb_sparsity: float
    heldout: LossIncrease
    calibration: LossIncrease
    mma_cycles: int
    dense_cycles: int
    mma_reduction: float
    cycles_reduction: float
    model_cycles_reduction: float
    energy_joules: float
    energy_reduction: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = {k: v for k, v in vars(self).items() if not isinstance(v, LossIncrease)}
        return {
            **plain,
            "heldout": self.heldout.to_json(),
            "calibration": self.calibration.to_json(),
        }


@dataclass(frozen=True)
class ParetoResult:
    """All budgets of one model on one accelerator.

    Attributes
    ----------
    model_name, accelerator, importance : str
        What was run, what is counted for, and what errors were weighed by.
    prefill_tokens, heldout_tokens, calibration_tokens : int
        Tokens that cycles are counted for, and that losses are measured on.
    heldout_text, calibration_text : str
        Their names.
    points : tuple of ParetoPoint
        In the order of the budgets.
    """

    model_name: str
    accelerator: str
    importance: str
    prefill_tokens: int
    heldout_tokens: int
    calibration_tokens: int
    heldout_text: str
    calibration_text: str
    points: tuple[ParetoPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "points": [point.to_json() for point in self.points]}

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw loss over saved cycles of the array and saved energy (PNG, SVG or PDF).

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        InvalidArgumentError
            If the file cannot be written, or its ending is not known.
        """
        from sparqle_tvm.report.pictures.pareto import draw_pareto

        target = Path(path)
        if target.suffix not in (".png", ".svg", ".pdf"):
            raise InvalidArgumentError(f"{target}: a picture ends in .png, .svg or .pdf")
        figure = draw_pareto(self)
        with replacing(target) as temporary:
            figure.savefig(temporary, dpi=150)


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
        What energy is counted with.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    SparqleError
        One of its classes: a calibration of another model, a budget that cannot be met, a bad
        text or target.
    """
    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.studies.calibrate import MEASURED_TOKENS, import_model, read_tokens
    from sparqle_tvm.studies.evaluation import transformer_shape
    from sparqle_tvm.target.cost.energy_table import default_table

    chosen = Accelerator.from_target(accelerator)
    require_int8(chosen.digit_bits, f"accelerator {chosen.name!r}", TargetError)
    if tokens < 2:
        raise InvalidArgumentError(f"perplexity needs at least 2 tokens, {tokens} were asked for")
    known = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    imported = import_model(model, progress=progress)
    name, heldout = read_tokens(imported, text, tokens, heldout=True)
    seen_name, seen = read_tokens(imported, seen_text, min(tokens, MEASURED_TOKENS))
    search = Search(known, importance=importance)
    selections = [choose(search, budget, known.measured) for budget in budgets]
    count = (len(heldout) + len(seen)) * (1 + len(selections))
    with tqdm(total=count, desc="compile", unit="token", disable=not progress) as bar:
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
            cost = _cost(encodings[0], transformer_shape(imported.config), chosen)
            points.append(_point(budget, losses, cost, chosen, table or default_table(chosen)))
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


def _cost(encodings: Any, transformer: Any, accelerator: Accelerator) -> Any:
    from sparqle_tvm.studies.count import count_phases

    return count_phases(encodings, transformer, accelerator)[0]


def _point(
    budget: Budget,
    losses: Sequence[LossIncrease],
    cost: Any,
    accelerator: Accelerator,
    table: EnergyTable,
) -> ParetoPoint:
    energy = cost.energy(accelerator, table)["dense_layers"]
    return ParetoPoint(
        budget=str(budget),
        msb_sparsity=cost.msb_sparsity,
        heldout=losses[0],
        calibration=losses[1],
        mma_cycles=cost.sparqle.mma_cycles,
        dense_cycles=cost.dense_layers.sparqle.cycles,
        mma_reduction=cost.mma_reduction,
        cycles_reduction=cost.dense_layers.cycles_reduction,
        model_cycles_reduction=cost.whole_model.cycles_reduction,
        energy_joules=energy.sparqle.joules.mid,
        energy_reduction=energy.reduction.mid,
    )
