"""A pass counted, work by work: what `results.passes.PassResult` is added up from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sparqle_tvm.results.passes import (
    BASELINE,
    Cost,
    Energy,
    Layer,
    Other,
    PartCost,
    PassKind,
    PassResult,
    Saved,
    SchemeCost,
    WorkCost,
    block_of,
    layer_type,
    share_saved,
)
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import energy as energy_model
from sparqle_tvm.target.cost.analytical import EncodeCost
from sparqle_tvm.target.cost.attention import AttentionCost
from sparqle_tvm.target.cost.energy import EnergyBreakdown
from sparqle_tvm.target.cost.energy_table import EnergyTable
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.limits import add
from sparqle_tvm.target.cost.model import CountedOp
from sparqle_tvm.target.cost.scheme_choice import LeftDense
from sparqle_tvm.target.cost.vector import VectorCost
from sparqle_tvm.target.joint_op import join
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.simulator.attention_work import AttentionCache

CountedCosts = tuple[EncodeCost, tuple[CountedOp, ...]]
"""Of an encoding, and of what runs for the dense ops that read it, see `joint_op.join`."""

_OF_THE_OP = ("label", "m", "n", "k", "weight_bits", "group_size", "has_min", "macs")


@dataclass(frozen=True)
class CountedEncoding:
    """An encoding and the dense ops that read it, counted: what `pass_result` is made of.

    Attributes
    ----------
    label, type, window, msb_sparsity, times, block_rows
        As in `Layer` and `Other`; an empty `type` is that of each op's label.
    shapes : tuple of DenseOp
        The ops.
    costs : mapping of str to CountedCosts
        By scheme; joint ops of `shapes` in their order.
    left : LeftDense or None
        Why ``sparqle`` leaves it dense.
    joint : bool
        Whether ops that are alike ran as one.
    """

    label: str
    window: str
    msb_sparsity: float
    shapes: tuple[DenseOp, ...]
    costs: Mapping[str, CountedCosts]
    type: str = ""
    times: int = 1
    block_rows: int = 0
    left: LeftDense | None = None
    joint: bool = True

    def layers(self) -> Iterator[Layer]:
        """Its ops as data; those that run as one have their shares."""
        shares: dict[int, list[dict[str, WorkCost]]] = {}
        for i, joint in enumerate(join(self.shapes, joint=self.joint)):
            channels = [part.n for part in joint.parts]
            divided = {
                scheme: WorkCost.of(ops[i]).divided(channels)
                for scheme, (_, ops) in self.costs.items()
            }
            for j, part in enumerate(joint.parts):
                share = {scheme: parts[j] for scheme, parts in divided.items()}
                shares.setdefault(id(part), []).append(share)
        for shape in self.shapes:
            yield Layer(
                type=self.type or layer_type(shape.label),
                block=block_of(shape.label),
                times=self.times,
                window=self.window,
                msb_sparsity=self.msb_sparsity,
                costs=shares[id(shape)].pop(0),
                left_dense=self.left,
                **{name: getattr(shape, name) for name in _OF_THE_OP},
            )

    def encoding(self) -> Other:
        """The encoding as data."""
        costs = {scheme: WorkCost.of(encode) for scheme, (encode, _) in self.costs.items()}
        return Other(self.label, "encode", self.times, self.block_rows, costs, self.left)

    def counted(self, scheme: str) -> Iterator[tuple[Cost, int]]:
        """The encoding and its ops under a scheme, with how often they occur."""
        encode, ops = self.costs[scheme]
        yield encode, self.times
        yield from ((op, self.times) for op in ops)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all that it stands for."""
        return self.times * sum(shape.macs for shape in self.shapes)


@dataclass(frozen=True)
class CountedAttention:
    """Attention on the array, counted: what `pass_result` is made of.

    Attributes
    ----------
    label : str
        Its name.
    times : int
        How many it stands for.
    costs : mapping of str to AttentionCost
        By scheme; of one.
    cache : AttentionCache
        What ``sparqle`` reads.
    left : LeftDense or None
        Why ``sparqle`` computes it as ``dense``, if it does.
    """

    label: str
    times: int
    costs: Mapping[str, AttentionCost]
    cache: AttentionCache
    left: LeftDense | None = None

    def other(self) -> Other:
        """It as data."""
        costs = {scheme: WorkCost.of(cost) for scheme, cost in self.costs.items()}
        return Other(self.label, "attention", self.times, 0, costs, self.left, self.cache)


def pass_result(
    phase: PassKind,
    *,
    tokens: int,
    past: int,
    encodings: Sequence[CountedEncoding],
    vector: Mapping[str, Sequence[VectorCost]],
    attention: Sequence[CountedAttention] = (),
    accelerator: Accelerator,
    table: EnergyTable,
    batch: int = 1,
    static_watts: float | None = None,
) -> PassResult:
    """Add up a pass.

    Parameters
    ----------
    phase, tokens, past, batch
        As in `PassResult`.
    encodings : sequence of CountedEncoding
        All of them, under the same schemes.
    vector : mapping of str to sequence of VectorCost
        What the vector unit does, by scheme: the same kinds of work under all.
    attention : sequence of CountedAttention
        What the array does of it.
    accelerator, table, static_watts
        What turns cycles into seconds and events into joules, see `target.cost.energy`.
    """
    macs = sum(e.macs for e in encodings)
    more = sum(cost.macs for cost in vector[next(iter(encodings[0].costs))])
    more += sum(a.times * next(iter(a.costs.values())).macs for a in attention)
    parts: dict[str, dict[str, tuple[PartCost, EnergyBreakdown]]] = {}
    for scheme in encodings[0].costs:
        dense = [pair for e in encodings for pair in e.counted(scheme)]
        array = [(a.costs[scheme], a.times) for a in attention]
        whole = [*dense, *array, *((cost, 1) for cost in vector[scheme])]
        parts[scheme] = {
            "dense_layers": _part(dense, macs, accelerator, table, static_watts),
            "whole_model": _part(whole, macs + more, accelerator, table, static_watts),
        }
    mma = {
        scheme: sum(e.times * op.mma_cycles for e in encodings for op in e.costs[scheme][1])
        for scheme in parts
    }
    works = (
        Other(
            *(costs[0].label, "vector", 1, 0),
            {scheme: WorkCost.of(cost) for scheme, cost in zip(parts, costs, strict=True)},
        )
        for costs in zip(*(vector[scheme] for scheme in parts), strict=True)
    )
    baseline = parts.get(BASELINE)
    return PassResult(
        phase=phase,
        tokens=tokens,
        past=past,
        batch=batch,
        msb_sparsity=sum(e.macs * e.msb_sparsity for e in encodings) / macs,
        schemes={
            scheme: SchemeCost(
                mma_cycles=mma[scheme],
                mma_saved=share_saved(mma[BASELINE], mma[scheme]) if baseline else None,
                **{
                    name: _compared(found, baseline[name] if baseline else None)
                    for name, found in both.items()
                },
            )
            for scheme, both in parts.items()
        },
        layers=tuple(layer for e in encodings for layer in e.layers()),
        others=(*(e.encoding() for e in encodings), *(a.other() for a in attention), *works),
    )


def _part(
    costs: Sequence[tuple[Cost, int]],
    macs: int,
    accelerator: Accelerator,
    table: EnergyTable,
    static_watts: float | None,
) -> tuple[PartCost, EnergyBreakdown]:
    events = sum((cost.events * times for cost, times in costs), Events())
    spent = energy_model.energy(events, accelerator, table, static_watts=static_watts)
    components = {name: band * 1e-12 for name, band in spent.components.items()}
    part = PartCost(
        cycles=events.cycles,
        seconds=accelerator.seconds(events.cycles),
        dram_bytes=events.dram_bytes,
        macs=macs,
        limits=add([(cost.limits, times) for cost, times in costs]),
        events=events,
        energy=Energy(spent.joules, components),
    )
    return part, spent


def _compared(
    found: tuple[PartCost, EnergyBreakdown], baseline: tuple[PartCost, EnergyBreakdown] | None
) -> PartCost:
    """A part with what it saves."""
    part, spent = found
    if baseline is None:
        return part
    before, spent_before = baseline
    saved = Saved(
        share_saved(before.cycles, part.cycles),
        share_saved(before.dram_bytes, part.dram_bytes),
        energy_model.reduction(spent_before, spent),
    )
    return replace(part, saved=saved)
