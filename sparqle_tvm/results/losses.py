"""What coarser scales lose, as data."""

from __future__ import annotations

from dataclasses import dataclass

from sparqle_tvm.calibration.loss import LossIncrease
from sparqle_tvm.files import Amount, Count, Positive, Share

KIND = "pareto"


@dataclass(frozen=True)
class Loss:
    """A `calibration.LossIncrease` as data, each increase with its standard error.

    `perplexity_increase` is its ``ratio``, relative to the reference's perplexity.
    """

    tokens: Positive
    reference_perplexity: Amount
    perplexity: Amount
    perplexity_increase: float
    perplexity_increase_error: Amount
    kl_nats: float
    kl_nats_error: Amount

    @classmethod
    def of(cls, increase: LossIncrease) -> Loss:
        """Take it from what was measured."""
        return cls(
            tokens=increase.tokens,
            reference_perplexity=increase.reference_perplexity,
            perplexity=increase.perplexity,
            perplexity_increase=increase.ratio,
            perplexity_increase_error=increase.ratio_error,
            kl_nats=increase.kl,
            kl_nats_error=increase.kl_error,
        )


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
    increase : Loss
        Against plain int8, on `text`.
    """

    budget: str
    expected_msb_sparsity: Share
    encodings: Count
    calibration_text: str
    text: str
    increase: Loss


@dataclass(frozen=True)
class KvChoice:
    """What a budget chose of keys and values.

    Attributes
    ----------
    budget : str
        As the user said it, ``planes:1%``.
    calibration_text : str
        What its loss was measured on.
    increase : Loss, optional
        Against keys and values in int8; None if they are stored without loss.
    """

    budget: str
    calibration_text: str
    increase: Loss | None


@dataclass(frozen=True)
class ParetoPoint:
    """One budget: what it loses and what it saves.

    Attributes
    ----------
    budget : str
        In words.
    msb_sparsity : float
        MAC-weighted share of zero MSBs in the prefill that is counted, 0 to 1.
    mma_cycles, dense_cycles : int
        Cycles of the array, and of the dense layers with encoding and memory, in the prefill.
    mma_reduction, cycles_reduction, model_cycles_reduction : float
        Shares of the dense baseline's that are saved: cycles of the array, of the dense layers,
        of the whole model.
    energy_joules, energy_reduction : float
        Energy of the dense layers, and the share that is saved.
    heldout, calibration : Loss
        Against int8, on text that calibration did not see and on its own.
    """

    budget: str
    msb_sparsity: float
    mma_cycles: int
    dense_cycles: int
    mma_reduction: float
    cycles_reduction: float
    model_cycles_reduction: float
    energy_joules: float
    energy_reduction: float
    heldout: Loss
    calibration: Loss


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
