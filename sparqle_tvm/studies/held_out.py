"""What a choice of scales loses in ``sparqle run``: on text that calibration did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from sparqle_tvm.calibration.budget import Budget
from sparqle_tvm.calibration.loss import LossIncrease, compare
from sparqle_tvm.calibration.search import Selection

if TYPE_CHECKING:
    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.frontend import ImportedModel


@dataclass(frozen=True)
class RunLoss:
    """A lossy choice that was run.

    Attributes
    ----------
    budget : str
        What it was held to, in words.
    expected_msb_sparsity : float
        What calibration expected, 0 to 1.
    encodings : int
        Encodings that got factors.
    calibration_text, text : str
        What calibration saw, and what the loss was measured on.
    increase : LossIncrease
        Against plain int8, on `text`.
    """

    budget: str
    expected_msb_sparsity: float
    encodings: int
    calibration_text: str
    text: str
    increase: LossIncrease

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "increase": self.increase.to_json()}


class ChosenFunctions:
    """``hidden`` and ``head`` of a choosable model with a choice, for `evaluation.evaluate`.

    Parameters
    ----------
    choosable : ChoosableModel
        The compiled model.
    selection : Selection, optional
        Its factors; by default none.
    """

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
    """Measure a choice against plain int8.

    Parameters
    ----------
    choosable : ChoosableModel
        The compiled model.
    imported : ImportedModel
        The same model, for its tokenizer.
    selection, budget : Selection, Budget
        What was chosen, and what it was held to.
    calibration_text : str
        Name of the text that calibration ran.
    text : path, optional
        A text file; by default the half of the built-in prose that calibration does not run.
    tokens : int
        Tokens of it, at most.
    """
    name, ids = _heldout_tokens(imported, text, tokens)
    reference = choosable.loss(ids)
    found = choosable.loss(ids, selection, reference=reference)
    return RunLoss(
        budget=str(budget),
        expected_msb_sparsity=selection.msb_sparsity,
        encodings=len(selection.choices),
        calibration_text=calibration_text,
        text=name,
        increase=compare(reference, found),
    )


def _heldout_tokens(
    imported: ImportedModel, text: str | PathLike[str] | None, tokens: int
) -> tuple[str, Sequence[int]]:
    """Name and first tokens of the text: all that it has, if it has fewer."""
    from sparqle_tvm.frontend.text import builtin_parts, read_text
    from sparqle_tvm.studies.calibrate import HELDOUT_TEXT

    content = builtin_parts()[0] if text is None else read_text(text)
    name = HELDOUT_TEXT if text is None else str(text)
    return name, imported.tokenizer.encode(content)[:tokens]
