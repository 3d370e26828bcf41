"""One pass of a model as data: what it costs under each scheme, part by part and layer by layer.

``sparqle run`` has two of them, counted from the bitmaps of a text; ``sparqle estimate`` is one, by
formula. Reports and pictures read this shape only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import Amount, Count, Positive, Share
from sparqle_tvm.target.cost.analytical import EncodeCost
from sparqle_tvm.target.cost.attention import AttentionCost
from sparqle_tvm.target.cost.energy_table import Band
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.limits import LIMITS
from sparqle_tvm.target.cost.model import CountedOp
from sparqle_tvm.target.cost.scheme_choice import LeftDense
from sparqle_tvm.target.cost.vector import VectorCost
from sparqle_tvm.target.joint_op import portions
from sparqle_tvm.target.simulator.attention_work import AttentionCache

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)
PassKind = Literal["prefill", "decode", "call"]
"""Phases of a language model, and one call of a function of any model."""
BASELINE = "dense"
"""The scheme that savings are given against."""

PARTS = {"dense_layers": "dense layers", "whole_model": "whole model"}
"""Parts of a pass, with their names for readers."""

Cost = CountedOp | EncodeCost | VectorCost | AttentionCost
# Names of layers hold the number of their block: blk_3_attn_q, layer_0_query, h_7_mlp_up.
_BLOCK = re.compile(r"^(?P<where>(?:[^\W\d]\w*?_)?)(?P<block>\d+)_(?P<rest>.+)$")
_BLOCKS = "blk_"


@dataclass(frozen=True)
class Energy:
    """Joules of a part of a pass, and the same by `target.cost.energy.COMPONENTS`."""

    joules: Band
    components: Mapping[str, Band]


@dataclass(frozen=True)
class Saved:
    """Shares of the baseline's that a scheme saves; negative where it needs more."""

    cycles: float
    dram_bytes: float
    energy: Band


def _check_limits(limits: Mapping[str, int], cycles: int) -> None:
    if set(limits) != set(LIMITS):
        raise InvalidArgumentError(f"limits must be those of {', '.join(LIMITS)}")
    if sum(limits.values()) != cycles:
        raise InvalidArgumentError(
            f"limits must add up to the {cycles} cycles that they limit, not {sum(limits.values())}"
        )


@dataclass(frozen=True)
class PartCost:
    """A part of a pass under one scheme.

    Attributes
    ----------
    cycles, seconds : int, float
        Time.
    dram_bytes : int
        Bytes read and written.
    macs : int
        Multiply-accumulates at full precision, of the vector unit too.
    limits : mapping of str to int
        What limits the time: cycles by `target.cost.limits.LIMITS`, which add up to `cycles`.
    events, energy : Events, Energy
        What costs energy, and how much.
    saved : Saved or None
        Against `BASELINE`; None if the pass was not counted under it.
    """

    cycles: Count
    seconds: Amount
    dram_bytes: Count
    macs: Count
    limits: Mapping[str, Count]
    events: Events
    energy: Energy
    saved: Saved | None = None

    def __post_init__(self) -> None:
        """Refuse a part that tables could not show."""
        _check_limits(self.limits, self.cycles)

    def share(self, *limits: str) -> float:
        """Share of the time that some of `target.cost.limits.LIMITS` take, 0 to 1."""
        return sum(self.limits[name] for name in limits) / self.cycles if self.cycles else 0.0

    @property
    def weight_bound(self) -> bool:
        """Most of the time goes to the transfer of weights."""
        return self.share("weights") > 0.5


@dataclass(frozen=True)
class SchemeCost:
    """A pass under one scheme.

    Attributes
    ----------
    mma_cycles : int
        Cycles of the array: what would remain if memory were free.
    mma_saved : float or None
        Share of the baseline's that is saved.
    dense_layers, whole_model : PartCost
        Dense layers with the encoding of their inputs; and with the vector unit's work.
    """

    mma_cycles: Count
    mma_saved: float | None
    dense_layers: PartCost
    whole_model: PartCost

    def part(self, name: str) -> PartCost:
        """One of `PARTS` by its name."""
        found: PartCost = getattr(self, name)
        return found


@dataclass(frozen=True)
class WorkCost:
    """One op, one encoding, or one kind of the vector unit's work under one scheme.

    Attributes
    ----------
    mma_cycles, compute_cycles, dma_cycles : int
        Cycles of the array; of whatever computes (array, drain or vector unit); of transfers.
    total_cycles : int
        Time in clock cycles.
    dram_bytes, weight_bytes, cache_bytes : int
        Bytes read and written; of them weights with their scales; keys and values.
    limits : mapping of str to int
        What limits the time: cycles by `target.cost.limits.LIMITS`, which add up to `total_cycles`.
    """

    mma_cycles: Count
    compute_cycles: Count
    dma_cycles: Count
    total_cycles: Count
    dram_bytes: Count
    weight_bytes: Count
    cache_bytes: Count
    limits: Mapping[str, Count]

    def __post_init__(self) -> None:
        """Refuse limits that are not those of the time."""
        _check_limits(self.limits, self.total_cycles)

    @property
    def limit(self) -> str:
        """What limits most of the time."""
        return max(LIMITS, key=self.limits.__getitem__)

    @classmethod
    def of(cls, cost: Cost) -> WorkCost:
        """Take it from what was counted."""
        mma_cycles = weight_bytes = cache_bytes = 0
        if isinstance(cost, AttentionCost):
            mma_cycles, compute_cycles = cost.mma_cycles, cost.compute_cycles
            cache_bytes = cost.cache_bytes
        elif isinstance(cost, EncodeCost | VectorCost):
            compute_cycles = cost.vector_cycles
            cache_bytes = cost.cache_bytes if isinstance(cost, VectorCost) else 0
        else:
            mma_cycles, compute_cycles = cost.mma_cycles, cost.compute_cycles
            weight_bytes = cost.weight_bytes
        return cls(
            mma_cycles=mma_cycles,
            compute_cycles=compute_cycles,
            dma_cycles=cost.dma_cycles,
            total_cycles=cost.total_cycles,
            dram_bytes=cost.dram_bytes,
            weight_bytes=weight_bytes,
            cache_bytes=cache_bytes,
            limits=cost.limits,
        )

    def divided(self, channels: Sequence[int]) -> list[WorkCost]:
        """The shares of ops that run as one, by their channels; they add up to this."""
        if len(channels) == 1:
            return [self]
        limits = {name: portions(cycles, channels) for name, cycles in self.limits.items()}
        whole = ("mma_cycles", "compute_cycles", "dma_cycles")
        parts = {name: portions(getattr(self, name), channels) for name in (*whole, *_BYTES)}
        return [
            WorkCost(
                total_cycles=sum(share[i] for share in limits.values()),
                limits={name: share[i] for name, share in limits.items()},
                **{name: share[i] for name, share in parts.items()},
            )
            for i in range(len(channels))
        ]


_BYTES = ("dram_bytes", "weight_bytes", "cache_bytes")


@dataclass(frozen=True)
class Layer:
    """A dense layer of a pass.

    Attributes
    ----------
    label, type : str
        Its name, and that of all its like: without the block, or the type of what it reads.
    block : int or None
        Block of the model; None if it is in none, or stands for layers of several.
    times : int
        How many layers of the model it stands for.
    window : str
        Window of its activations; empty if they are of none in particular.
    msb_sparsity : float
        Share of zero MSB digits in its activations, 0 to 1.
    m, n, k, weight_bits, group_size, has_min
        As in `target.op.DenseOp`.
    macs : int
        Multiply-accumulates at full precision.
    costs : mapping of str to WorkCost
        By scheme; of one layer. Of layers that read one encoding and run as one op (q, k and v;
        gate and up) each has its share by channels.
    left_dense : LeftDense or None
        Why the compiler leaves it dense under ``sparqle``, with what encoding and readers take
        either way; None: it is split.
    """

    label: str
    type: str
    block: int | None
    times: Positive
    window: str
    msb_sparsity: Share
    m: Positive
    n: Positive
    k: Positive
    weight_bits: Count
    group_size: Count
    has_min: bool
    macs: Positive
    costs: Mapping[str, WorkCost]
    left_dense: LeftDense | None = None


@dataclass(frozen=True)
class Other:
    """What is no dense layer: an encoding, attention, or one kind of the vector unit's work.

    Attributes
    ----------
    label : str
        Its name.
    part : {"encode", "attention", "vector"}
        Which of these; attention on the array, that of the vector unit is work of it.
    times : int
        How many of the model it stands for.
    block_rows : int
        Rows that an encoding sorts together under ``sparqle``; 0: none.
    costs : mapping of str to WorkCost
        By scheme; of one.
    left_dense : LeftDense or None
        Of an encoding as of the layers that read it, or of attention.
    cache : AttentionCache or None
        Of attention on the array: the keys that it needed, and what a token takes in its cache.
    """

    label: str
    part: Literal["encode", "attention", "vector"]
    times: Positive
    block_rows: Count
    costs: Mapping[str, WorkCost]
    left_dense: LeftDense | None = None
    cache: AttentionCache | None = None


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """A pass of a model.

    Attributes
    ----------
    phase : {"prefill", "decode", "call"}
        All tokens at once, one token of each sequence, or a call of any function.
    tokens, past : int
        Tokens of a sequence in the pass (of a call the most rows that a dense layer has), and in
        the cache before it.
    batch : int
        Sequences.
    msb_sparsity : float
        Share of zero MSB digits in what dense layers read, weighted by MACs.
    schemes : mapping of str to SchemeCost
        By scheme, in the order they were counted in.
    layers : tuple of Layer
        The dense layers in program order.
    others : tuple of Other
        The rest.
    same_tiles : mapping of str to float
        By part, the share of energy that ``sparqle`` would save if ``dense`` had its tiles: what
        planes save. The rest of what is saved comes from other tiles. Empty if nobody asked.
    """

    phase: PassKind
    tokens: Positive
    past: Count
    batch: Positive
    msb_sparsity: Share
    schemes: Mapping[str, SchemeCost]
    layers: tuple[Layer, ...]
    others: tuple[Other, ...]
    same_tiles: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a pass whose parts do not belong together."""
        counted = set(self.schemes)
        parts = [found.part(part) for found in self.schemes.values() for part in PARTS]
        if BASELINE in counted and any(part.saved is None for part in parts):
            raise InvalidArgumentError(f"a part does not say what it saves of {BASELINE}")
        counted_work: list[Layer | Other] = [*self.layers, *self.others]
        for each in counted_work:
            if counted - set(each.costs):
                raise InvalidArgumentError(f"{each.label!r} lacks the cost of a scheme")

    @property
    def name(self) -> str:
        """Phase and tokens: ``decode, 1 token after 511``; ``call, 9 rows``."""
        unit = "row" if self.phase == "call" else "token"
        tokens = f"{self.tokens:,} {unit}{'s' * (self.tokens > 1)}"
        return f"{self.phase}, {tokens}" + (f" after {self.past:,}" if self.past else "")

    def saved(self, scheme: str, part: str = "whole_model") -> Saved:
        """What a scheme saves of `BASELINE` in a part (`PARTS`).

        Raises
        ------
        InvalidArgumentError
            If the pass was not counted under one of both, or has no such part.
        """
        missing = {scheme, BASELINE} - set(self.schemes)
        if missing or part not in PARTS:
            raise InvalidArgumentError(
                f"the pass has the schemes {', '.join(self.schemes)} and the parts "
                f"{', '.join(PARTS)}, not {', '.join(sorted(missing)) or part}"
            )
        found = self.schemes[scheme].part(part).saved
        assert found is not None
        return found


def share_saved(before: float, after: float) -> float:
    """Share of `before` that is saved; 0 if there was nothing."""
    return 1.0 - after / before if before else 0.0


def layer_type(label: str) -> str:
    """``blk_3_attn_q`` -> ``attn_q``, ``layer_0_query`` -> ``layer_query``: same for all blocks."""
    found = _BLOCK.match(label)
    return found["where"].removeprefix(_BLOCKS) + found["rest"] if found else label


def block_of(label: str) -> int | None:
    """``blk_3_attn_q`` -> 3; None for what lies in no block (the output layer)."""
    found = _BLOCK.match(label)
    return int(found["block"]) if found else None
