"""What split precision gives on an accelerator for a published model: seconds, joules, limits.

By formula (`sparqle_tvm.target.cost`), from the shapes of the model and a distribution of MSB
digits: no weights, no compiler, no simulation. Equal layers are counted once. All schemes are
counted with the same memory, buffers and tables, each with the tiles that are best for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.shapes import LAYER_TYPES, ModelShape, model_shape
from sparqle_tvm.models.sparsity import MEASURED, MsbDistribution, msb_distribution
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.results.estimate import (
    BASELINE,
    LIMITS,
    PARTS,
    PHASES,
    Estimate,
    LayerEstimate,
    PartEstimate,
    Phase,
    SchemeEstimate,
    limit_of,
)
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import EncodeCost, OpCost, encoding_costs
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES, Scheme
from sparqle_tvm.target.cost.block_rows import Balance, choose_block_rows
from sparqle_tvm.target.cost.energy import EnergyBreakdown, energy
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.vector import VectorCost, vector_costs

if TYPE_CHECKING:
    from tvm.target import Target

__all__ = [
    "BASELINE",
    "LIMITS",
    "PARTS",
    "PHASES",
    "Estimate",
    "LayerEstimate",
    "PartEstimate",
    "SchemeEstimate",
    "estimate",
]


def estimate(
    model: str | ModelShape,
    phase: Phase,
    *,
    seq: int,
    batch: int = 1,
    msb_sparsity: str | float | os.PathLike[str] | MsbDistribution = MEASURED,
    target: str | Accelerator | Target = "sparqle/edge",
    table: EnergyTable | None = None,
    schemes: Sequence[Scheme] = ALL_SCHEMES,
    kv_bits: int = 8,
    balance: Balance = "array",
    static_watts: float | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate a pass of a model.

    Parameters
    ----------
    model : str or ModelShape
        A name of `sparqle_tvm.models.shapes.MODELS`, or sizes of one's own.
    phase : {"prefill", "decode"}
        A pass over `seq` tokens of every sequence, or over one token after `seq` others.
    seq : int
        Tokens.
    batch : int
        Sequences. Their rows share the weights; keys and values are those of each sequence.
    msb_sparsity : str, float, path or MsbDistribution
        ``measured`` (on SmolLM2-135M, with digits as wide as the accelerator's), a share of zero
        MSB digits, or a JSON file; see `sparqle_tvm.models.sparsity`.
    target : str, Accelerator or tvm.target.Target
        A preset, an accelerator file (``.toml``), an accelerator or a TVM target.
    table : EnergyTable, optional
        Energy of single operations; by default 7 nm and the accelerator's memory.
    schemes : sequence of str
        What to compare.
    kv_bits : int
        Bits of a cached key or value, one of `target.cost.vector.KV_BITS`; they are stored plain.
    balance : {"array", "time", "none"}
        What rows are sorted for under ``sparqle``, see `target.cost.block_rows`.
    static_watts : float, optional
        Leakage and idle power; by default that of the table's parameter.
    seed : int
        Of the digits that are drawn.

    Raises
    ------
    InvalidArgumentError
        If model, phase, scheme or sparsity are unknown, digits were measured at another width,
        `kv_bits` is none of `target.cost.vector.KV_BITS`, a number is not positive, or a power is
        negative.
    TargetError
        If the accelerator is unknown, or no tile fits its buffers.
    """
    shape, accelerator = model_shape(model), Accelerator.from_target(target)
    distribution = msb_distribution(msb_sparsity, accelerator.digit_bits)
    _check(phase, seq, batch, schemes)
    table = default_table(accelerator) if table is None else table
    tokens = seq if phase == "prefill" else 1
    past = 0 if phase == "prefill" else seq
    vector = vector_costs(shape.transformer(kv_bits), tokens, past, accelerator, batch)
    found: dict[str, SchemeEstimate] = {}
    for scheme in schemes:
        layers = tuple(
            layer
            for kind in LAYER_TYPES
            for layer in _layers(
                shape,
                kind,
                batch * (1 if kind == "output" else tokens),
                distribution,
                accelerator,
                scheme,
                balance,
                seed,
            )
        )
        found[scheme] = _scheme_estimate(
            scheme,
            layers,
            vector,
            lambda events: energy(events, accelerator, table, static_watts=static_watts),
            accelerator,
        )
    return Estimate(
        model=shape,
        phase=phase,
        seq=seq,
        batch=batch,
        kv_bits=kv_bits,
        balance=balance,
        sparsity=distribution,
        accelerator=accelerator,
        table=table,
        schemes=found,
    )


def _check(phase: str, seq: int, batch: int, schemes: Sequence[str]) -> None:
    if phase not in PHASES:
        raise InvalidArgumentError(f"unknown phase {phase!r}; known: {', '.join(PHASES)}")
    for name, value in (("seq", seq), ("batch", batch)):
        if value < 1:
            raise InvalidArgumentError(f"{name} = {value} must be at least 1")
    unknown = [scheme for scheme in schemes if scheme not in ALL_SCHEMES]
    if unknown or not schemes or len(set(schemes)) < len(schemes):
        raise InvalidArgumentError(
            f"schemes = {list(schemes)} must be different ones of {', '.join(ALL_SCHEMES)}"
        )


def _layers(
    shape: ModelShape,
    kind: str,
    rows: int,
    distribution: MsbDistribution,
    accelerator: Accelerator,
    scheme: Scheme,
    balance: Balance,
    seed: int,
) -> Iterable[LayerEstimate]:
    """Layers of a type: one for each class of digits, or one of all if the scheme has none."""
    readers = shape.readers(kind, rows, accelerator.digit_bits)
    k, group = readers[0].k, max(readers[0].group_size, 1)
    unit = math.lcm(8, accelerator.lanes, group)
    if scheme != "sparqle":
        # A baseline takes no more from the digits than how many rows and columns there are.
        nothing = RowNnz(np.zeros((rows, 1), dtype=np.int32), k, k)
        encode, ops = encoding_costs(kind, nothing, readers, accelerator, scheme)
        sparsity = distribution.msb_sparsity(kind)
        yield LayerEstimate(kind, shape.times(kind), sparsity, encode, ops)
        return
    block = choose_block_rows(readers, accelerator, balance)
    for which, times in enumerate(distribution.layer_counts(kind, shape.times(kind))):
        nnz = distribution.draw(kind, which, rows, k, unit, seed)
        encode, ops = encoding_costs(kind, nnz, readers, accelerator, scheme, block)
        yield LayerEstimate(kind, times, nnz.msb_sparsity, encode, ops)


def _scheme_estimate(
    scheme: Scheme,
    layers: tuple[LayerEstimate, ...],
    vector: tuple[VectorCost, ...],
    energy_of: Callable[[Events], EnergyBreakdown],
    accelerator: Accelerator,
) -> SchemeEstimate:
    dense = [(cost, layer.times) for layer in layers for cost in layer.costs]
    rest = [(cost, 1) for cost in vector]
    return SchemeEstimate(
        scheme=scheme,
        layers=layers,
        vector=vector,
        dense_layers=_part(dense, energy_of, accelerator),
        whole_model=_part([*dense, *rest], energy_of, accelerator),
    )


def _part(
    costs: Sequence[tuple[OpCost | EncodeCost | VectorCost, int]],
    energy_of: Callable[[Events], EnergyBreakdown],
    accelerator: Accelerator,
) -> PartEstimate:
    events = sum((cost.events * times for cost, times in costs), Events())
    limited = dict.fromkeys(LIMITS, 0)
    for cost, times in costs:
        limited[limit_of(cost)] += cost.total_cycles * times
    return PartEstimate(
        cycles=events.cycles,
        seconds=accelerator.seconds(events.cycles),
        dram_bytes=events.dram_bytes,
        macs=sum(cost.macs * times for cost, times in costs if not isinstance(cost, EncodeCost)),
        limits={name: cycles / events.cycles for name, cycles in limited.items()},
        events=events,
        energy=energy_of(events),
    )
