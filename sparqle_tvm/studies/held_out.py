"""What a choice of scales loses in ``sparqle run``: on text that calibration did not see."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from sparqle_tvm.calibration.budget import Budget
from sparqle_tvm.calibration.loss import compare
from sparqle_tvm.calibration.search import Selection
from sparqle_tvm.results.losses import Loss, RunLoss
from sparqle_tvm.studies.inputs import read_tokens

if TYPE_CHECKING:
    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.frontend import ImportedModel


class ChosenFunctions:
    """``hidden`` and ``head`` of a choosable model with a choice, for `evaluation.evaluate`."""

    def __init__(self, choosable: ChoosableModel, selection: Selection | None = None) -> None:
        self._choosable = choosable
        self._choices = selection.choices if selection is not None else {}
        self.encodings: list[Any] = []

    def __getitem__(self, name: str) -> Any:
        """A function by name."""
        if name != "hidden":
            return self._choosable.collector[name]
        return lambda tokens: self._choosable.collector.call(tokens, choices=self._choices)[0]


def held_out_loss(
    choosable: ChoosableModel,
    imported: ImportedModel,
    selection: Selection,
    budget: Budget,
    *,
    calibration_text: str,
    text: str | PathLike[str] | None,
    tokens: int,
) -> RunLoss:
    """Measure a choice of a model that was imported, within a budget, against plain int8.

    Parameters
    ----------
    calibration_text : str
        Name of the text that calibration ran.
    text : path, optional
        A text file; by default the half of the built-in prose that calibration does not run.
    tokens : int
        Tokens of it, at most.
    """
    name, ids = read_tokens(imported, text, tokens, heldout=True, fewer=True)
    reference = choosable.loss(ids)
    found = choosable.loss(ids, selection, reference=reference)
    return RunLoss(
        budget=str(budget),
        expected_msb_sparsity=selection.msb_sparsity,
        encodings=len(selection.choices),
        calibration_text=calibration_text,
        text=name,
        increase=Loss.of(compare(reference, found)),
    )
