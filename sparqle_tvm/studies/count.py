"""Counting the phases of a run: prefill and decode, split and dense, rows sorted or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sparqle_tvm.results.counted import CountedAttention, CountedEncoding, pass_result
from sparqle_tvm.results.passes import PassKind, PassResult
from sparqle_tvm.results.run import SortingResult
from sparqle_tvm.studies.attention import written_token
from sparqle_tvm.studies.same_tiles import saved_with_same_tiles
from sparqle_tvm.studies.simulated import simulated_pass_cost
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES, Scheme
from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.model import Counting, EncodedActivation, PassCost, pass_cost
from sparqle_tvm.target.cost.vector import TransformerShape, VectorCost, vector_costs
from sparqle_tvm.target.op import SCHEMES, ProgramScheme

Attention = Callable[[int, int], Sequence[CountedAttention]]
"""Attention of all layers, counted for so many tokens after so many others."""

if TYPE_CHECKING:
    from sparqle_tvm.target.compile.library import ProgramLibrary, Schedules

# What programs exist for, the baseline first.
_PROGRAMS: tuple[ProgramScheme, ...] = ("dense", "sparqle")
OUTPUT_LABEL = "output"
"""Name of the layer that makes logits."""


def count_phases(
    encodings: Sequence[EncodedActivation],
    transformer: TransformerShape,
    accelerator: Accelerator,
    engine: Counting = "analytical",
    balance: Balance = "array",
    tuned: Schedules | None = None,
    table: EnergyTable | None = None,
    *,
    attention: Attention | None = None,
) -> tuple[PassResult, PassResult]:
    """Count prefill (all tokens) and decode (the last token after the others).

    Parameters
    ----------
    encodings : sequence of EncodedActivation
        Of one pass over all tokens. An encoding of fewer rows (the output layer's) counts with
        its last one: only the last token's logits are needed.
    transformer, accelerator : TransformerShape, Accelerator
        Sizes of the model, and what is counted for.
    engine : {"simulator", "analytical"}
        Whether the dense ops run on the simulator or by formula.
    balance : {"array", "time", "none"}
        Where encodings sort their rows.
    tuned : Schedules, optional
        Schedules to prefer to the default ones, on the simulator.
    table : EnergyTable, optional
        What energy is counted with; by default that of the accelerator.
    attention : Attention, optional
        Attention on the array; by default the vector unit computes it.
    """
    counter = PassCounter(transformer, accelerator, engine, tuned, attention)
    table = table or default_table(accelerator)
    tokens = max(encoding.nnz.rows for encoding in encodings)
    last = [encoding.last_token() for encoding in encodings]
    prefill = counter.count("prefill", prefill_encodings(encodings), 0, balance, table)
    return prefill, counter.count("decode", last, tokens - 1, balance, table)


def count_call(
    encodings: Sequence[EncodedActivation],
    rest: Sequence[VectorCost],
    accelerator: Accelerator,
    engine: Counting,
    balance: Balance,
    tuned: Schedules | None,
    table: EnergyTable,
    *,
    attention: Sequence[CountedAttention] = (),
) -> PassResult:
    """Count a call of any function, whose other work is `rest`; else as `count_phases`.

    The baselines that no programs exist for are counted by formula, where attention on the array is
    not: that of a call ran as programs.
    """
    counter = PassCounter(None, accelerator, engine, tuned)
    beside = Beside(lambda _: tuple(rest), attention)
    schemes = _PROGRAMS if attention else ALL_SCHEMES
    return counter.count("call", encodings, 0, balance, table, beside=beside, schemes=schemes)


def count_sorting(
    prefill: PassResult,
    encodings: Sequence[EncodedActivation],
    transformer: TransformerShape,
    accelerator: Accelerator,
    engine: Counting,
    balance: Balance,
    tuned: Schedules | None = None,
) -> SortingResult:
    """Count the prefill of `count_phases` with all rows in their own order, and compare."""
    blocks = [other.block_rows for other in prefill.others if other.part == "encode"]
    found = prefill.schemes["sparqle"]
    mma_cycles, layer_cycles = found.mma_cycles, found.dense_layers.cycles
    if any(blocks):
        counter = PassCounter(transformer, accelerator, engine, tuned)
        in_order = counter.cost(prefill_encodings(encodings), 0, "sparqle", "none")
        mma_cycles, layer_cycles = in_order.mma_cycles, in_order.dense_layers.cycles
    return SortingResult(
        goal=balance,
        sorted_encodings=sum(block > 0 for block in blocks),
        encodings=len(blocks),
        block_rows=tuple(sorted({block for block in blocks if block})),
        mma_cycles_in_order=mma_cycles,
        mma_cycles=found.mma_cycles,
        layer_cycles_in_order=layer_cycles,
        layer_cycles=found.dense_layers.cycles,
    )


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
class Beside:
    """What a pass has beside dense layers: the vector unit's work by scheme, and attention."""

    vector: Callable[[Scheme], tuple[VectorCost, ...]]
    attention: Sequence[CountedAttention] = ()


@dataclass(frozen=True)
class PassCounter:
    """Counts passes of one model."""

    transformer: TransformerShape | None
    accelerator: Accelerator
    engine: Counting
    tuned: Schedules | None = None
    attention: Attention | None = None

    @cached_property
    def _programs(self) -> ProgramLibrary:
        from sparqle_tvm.target.compile.library import ProgramLibrary

        return ProgramLibrary(self.accelerator, self.tuned)

    def cost(
        self,
        encodings: Sequence[EncodedActivation],
        past: int,
        scheme: Scheme,
        balance: Balance,
    ) -> PassCost:
        """Count a pass after `past` tokens; its own tokens are those of its encodings."""
        tokens = max(encoding.nnz.rows for encoding in encodings)
        options: Any = {"tokens": tokens, "past": past, "scheme": scheme, "balance": balance}
        shape = self.transformer if self.attention is None else None
        if self.engine == "simulator" and scheme in SCHEMES:
            return simulated_pass_cost(encodings, shape, programs=self._programs, **options)
        return pass_cost(encodings, shape, accelerator=self.accelerator, **options)

    def _beside(self, attention: Sequence[CountedAttention], tokens: int, past: int) -> Beside:
        """Attention on the array, and what it leaves to the vector unit."""
        assert self.transformer is not None
        given = (self.transformer, tokens, past, self.accelerator)

        def vector(scheme: Scheme) -> tuple[VectorCost, ...]:
            stored = written_token(attention, scheme)
            return vector_costs(*given, attention=False, scheme=scheme, stored=stored)

        return Beside(vector, attention)

    def count(
        self,
        phase: PassKind,
        encodings: Sequence[EncodedActivation],
        past: int,
        balance: Balance,
        table: EnergyTable,
        *,
        batch: int = 1,
        beside: Beside | None = None,
        schemes: Sequence[Scheme] = _PROGRAMS,
    ) -> PassResult:
        """Count a pass under some schemes; of a `batch` in decode, rows are those of sequences.

        What is `beside` the dense layers is by default that of a transformer and one sequence.
        """
        costs = {scheme: self.cost(encodings, past, scheme, balance) for scheme in schemes}
        counted, first = [], 0
        for i, e in enumerate(encodings):
            after = first + len(e.launches)
            counted.append(
                CountedEncoding(
                    label=e.label,
                    window=e.window,
                    msb_sparsity=e.nnz.msb_sparsity,
                    shapes=e.consumers,
                    costs={s: (c.encodes[i], c.ops[first:after]) for s, c in costs.items()},
                    block_rows=costs["sparqle"].encodes[i].block_rows,
                    left=costs["sparqle"].left[i],
                    joint=e.joint,
                )
            )
            first = after
        tokens = max(encoding.nnz.rows for encoding in encodings) // batch
        if beside is None and self.attention is not None:
            beside = self._beside(self.attention(tokens, past), tokens, past)
        vector: dict[str, Sequence[VectorCost]] = {s: cost.vector for s, cost in costs.items()}
        attention: Sequence[CountedAttention] = ()
        if beside is not None:
            vector, attention = {s: beside.vector(s) for s in schemes}, beside.attention
        found = pass_result(
            phase,
            tokens=tokens,
            past=past,
            batch=batch,
            encodings=counted,
            attention=attention,
            vector=vector,
            accelerator=self.accelerator,
            table=table,
        )
        same = saved_with_same_tiles(counted, found, self.accelerator, table)
        return replace(found, same_tiles=same)
