"""Counting the phases of a run: prefill and decode, under both schemes, rows sorted or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sparqle_tvm.results.balance import BalanceResult, count_balance
from sparqle_tvm.results.run import PhaseResult
from sparqle_tvm.studies.simulated import simulated_pass_cost
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.model import EncodedActivation, PassCost, pass_cost
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.op import ProgramScheme

if TYPE_CHECKING:
    from sparqle_tvm.target.compile.library import ProgramLibrary, Schedules

OUTPUT_LABEL = "output"
"""Name of the layer that makes logits."""

CountEngine = Literal["simulator", "analytical"]


def count_phases(
    encodings: Sequence[EncodedActivation],
    transformer: TransformerShape,
    accelerator: Accelerator,
    engine: CountEngine = "analytical",
    balance: Balance = "array",
    tuned: Schedules | None = None,
) -> tuple[PhaseResult, PhaseResult]:
    """Count prefill (all tokens) and decode (the last token after the others).

    Parameters
    ----------
    encodings : sequence of EncodedActivation
        Of one pass over all tokens. An encoding of fewer rows (the output layer's) counts with
        its last one: only the last token's logits are needed.
    transformer : TransformerShape
        Sizes of the model.
    accelerator : Accelerator
        What is counted for.
    engine : {"simulator", "analytical"}
        Whether the dense ops run on the simulator or by formula.
    balance : {"array", "time", "none"}
        Where encodings sort their rows.
    tuned : Schedules, optional
        Schedules to prefer to the default ones, on the simulator.
    """
    counter = _Counter(transformer, accelerator, engine, tuned)
    tokens = max(encoding.nnz.rows for encoding in encodings)
    last = [encoding.last_token() for encoding in encodings]
    prefill = counter.phase(prefill_encodings(encodings), 0, balance)
    return prefill, counter.phase(last, tokens - 1, balance)


def count_gain(
    prefill: PhaseResult,
    transformer: TransformerShape,
    accelerator: Accelerator,
    engine: CountEngine,
    balance: Balance,
    tuned: Schedules | None = None,
) -> BalanceResult:
    """Count prefill with all rows in their own order, beside what `count_phases` counted."""
    in_order = prefill.sparqle
    if any(encode.block_rows for encode in prefill.sparqle.encodes):
        counter = _Counter(transformer, accelerator, engine, tuned)
        in_order = counter.cost(prefill.encodings, prefill.past, "sparqle", "none")
    return count_balance(prefill.sparqle, in_order, balance)


def prefill_encodings(encodings: Sequence[EncodedActivation]) -> list[EncodedActivation]:
    """Keep all tokens, but only the last one for the output layer."""
    tokens = max(encoding.nnz.rows for encoding in encodings)
    return [
        encoding.last_token() if encoding.nnz.rows < tokens or _is_output(encoding) else encoding
        for encoding in encodings
    ]


def _is_output(encoding: EncodedActivation) -> bool:
    return any(shape.label == OUTPUT_LABEL for shape in encoding.consumers)


@dataclass(frozen=True)
class _Counter:
    """Counts passes of one model."""

    transformer: TransformerShape
    accelerator: Accelerator
    engine: CountEngine
    tuned: Schedules | None = None

    @cached_property
    def _programs(self) -> ProgramLibrary:
        from sparqle_tvm.target.compile.library import ProgramLibrary

        return ProgramLibrary(self.accelerator, self.tuned)

    def cost(
        self,
        encodings: Sequence[EncodedActivation],
        past: int,
        scheme: ProgramScheme,
        balance: Balance,
    ) -> PassCost:
        """Count a pass after `past` tokens; its own tokens are those of its encodings."""
        tokens = max(encoding.nnz.rows for encoding in encodings)
        options: Any = {"tokens": tokens, "past": past, "scheme": scheme, "balance": balance}
        shape = self.transformer
        if self.engine == "simulator":
            return simulated_pass_cost(encodings, shape, programs=self._programs, **options)
        return pass_cost(encodings, shape, accelerator=self.accelerator, **options)

    def phase(
        self, encodings: Sequence[EncodedActivation], past: int, balance: Balance
    ) -> PhaseResult:
        """Count a pass under both schemes."""
        macs = sum(encoding.macs for encoding in encodings)
        sparsity = sum(encoding.nnz.msb_sparsity * encoding.macs for encoding in encodings) / macs
        dense = self.cost(encodings, past, "dense", balance)
        sparqle = self.cost(encodings, past, "sparqle", balance)
        tokens = max(encoding.nnz.rows for encoding in encodings)
        return PhaseResult(tokens, past, sparsity, dense, sparqle, tuple(encodings))
