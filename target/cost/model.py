"""A whole model on an accelerator: dense layers, their encodings, and the vector unit's work.

Ops run one after another (only the loads, computation and stores *within* one overlap), so cycles
add up. ``dense_layers`` are the dense ops with the encoding of their inputs; ``whole_model`` adds
the vector unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.window import window_of
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import Bound, EncodeCost, Encoded, OpCost, costs_together
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.block_rows import Balance, choose_block_rows, sorting_questions
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY
from sparqle_tvm.target.cost.factors import NO_FACTORS, EncodeFactors
from sparqle_tvm.target.cost.limits import Limits, add
from sparqle_tvm.target.cost.schedule import Tiling
from sparqle_tvm.target.cost.scheme_choice import LeftDense, left_dense, scheme_questions
from sparqle_tvm.target.cost.tiling import choose_together
from sparqle_tvm.target.cost.vector import TransformerShape, VectorCost, vector_costs
from sparqle_tvm.target.joint_op import joined
from sparqle_tvm.target.op import DenseOp, ProgramScheme

Counting = Literal["simulator", "analytical"]
"""Whether dense ops run as simulated programs, or are counted by formula."""


@dataclass(frozen=True)
class SimulatedOp:
    """One dense op as the simulator ran it.

    Attributes
    ----------
    label : str
        The op.
    scheme : {"sparqle", "dense"}
        How the activations are stored and computed.
    macs : int
        Multiply-accumulates at full precision.
    tiling : Tiling
        Its tiles, and with them the schedule.
    mma_cycles : int
        Cycles that the array was busy.
    dma_cycles : int
        Cycles that the DRAM channel was busy.
    weight_bytes, dram_bytes : int
        Bytes of weights with their scales read; all bytes read and written.
    total_cycles : int
        Cycles until the last engine had ended.
    stalled_cycles : int
        Cycles that the array waited.
    events : Events
        What costs energy.
    limits : mapping of str to int
        What the time is limited by, see `limits`.
    """

    label: str
    scheme: ProgramScheme
    macs: int
    tiling: Tiling
    mma_cycles: int
    dma_cycles: int
    weight_bytes: int
    dram_bytes: int
    total_cycles: int
    stalled_cycles: int
    events: Events
    limits: Limits

    @property
    def compute_cycles(self) -> int:
        """The array's cycles: what the drain takes longer is part of the time only."""
        return self.mma_cycles

    @property
    def bound(self) -> Bound:
        """What limits the op."""
        return "compute" if self.mma_cycles >= self.dma_cycles else "memory"


CountedOp = OpCost | SimulatedOp
"""What a dense op costs, counted by formula or by the simulator."""


@dataclass(frozen=True, eq=False)
class EncodedActivation:
    """A quantized tensor with its bitmap, and the dense ops that read it.

    Attributes
    ----------
    label : str
        Name of the tensor.
    nnz : RowNnz
        Stored MSB digits of each token.
    window : {"signed", "unsigned"}
        Window of the encoding.
    consumers : tuple of DenseOp
        The dense ops; their `m` and `k` are those of `nnz`, their window that of the encoding.
    factors : EncodeFactors
        Whether it has factors and bands.
    density : float
        Share of stored MSB digits that its programs were chosen for, 0 to 1.
    joint : bool
        Whether consumers that are alike run as one; not where the compiler could not join them.
    """

    label: str
    nnz: RowNnz
    window: str
    consumers: tuple[DenseOp, ...]
    factors: EncodeFactors = NO_FACTORS
    density: float = TYPICAL_DENSITY
    joint: bool = True

    def __post_init__(self) -> None:
        """Give its window to its readers: what they have to read depends on it."""
        window = window_of(self.window).name
        readers = tuple(
            op if op.window == window else replace(op, window=window, centre=0)
            for op in self.consumers
        )
        object.__setattr__(self, "consumers", readers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all dense ops that read it."""
        return sum(shape.macs for shape in self.consumers)

    @cached_property
    def launches(self) -> tuple[DenseOp, ...]:
        """What runs for its consumers, see `joint_op.join`."""
        return joined(self.consumers, joint=self.joint)

    def block_rows(self, accelerator: Accelerator, balance: Balance = "array") -> int:
        """Rows that it sorts together, see `balance.choose_block_rows`."""
        return choose_block_rows(self.launches, accelerator, balance, self.density)

    def left_dense(
        self, accelerator: Accelerator, block_rows: int, rows: int | None = None
    ) -> LeftDense | None:
        """Whether its programs take dense passes, see `scheme_choice.left_dense`.

        `rows` are those that programs are made for, if not its own.
        """
        ops = self.programs(block_rows, rows or self.nnz.rows)
        return left_dense(ops, accelerator, self.factors, self.density)

    def programs(self, block_rows: int, rows: int) -> tuple[DenseOp, ...]:
        """What programs for so many rows, so many of them sorted, are made of."""
        return tuple(replace(op, m=rows, block_rows=block_rows) for op in self.launches)

    def last_token(self) -> EncodedActivation:
        """The same encoding with its last token only."""
        consumers = tuple(replace(shape, m=1) for shape in self.consumers)
        return replace(self, nnz=self.nnz.last_row(), consumers=consumers)


@dataclass(frozen=True)
class Totals:
    """Sums over a part of a model.

    Attributes
    ----------
    cycles : int
        Time in clock cycles.
    dram_bytes : int
        Bytes read and written.
    limits : mapping of str to int
        What the cycles are limited by, see `limits`.
    events : Events
        What costs energy.
    """

    cycles: int
    dram_bytes: int
    limits: Limits
    events: Events = field(default_factory=Events)

    @classmethod
    def of(cls, costs: Iterable[CountedOp | EncodeCost | VectorCost]) -> Totals:
        """Add up."""
        costs = tuple(costs)
        return cls(
            cycles=sum(cost.total_cycles for cost in costs),
            dram_bytes=sum(cost.dram_bytes for cost in costs),
            limits=add([(cost.limits, 1) for cost in costs]),
            events=sum((cost.events for cost in costs), Events()),
        )


@dataclass(frozen=True)
class PassCost:
    """Cost of one pass (prefill, or one decode step) under one scheme.

    Attributes
    ----------
    scheme : {"sparqle", "dense", "native", "a4"}
        How the dense layers work.
    ops : tuple of CountedOp
        The dense layers in order, counted (`analytical`) or simulated (`simulated`); those that
        read one encoding as joint ops (`joint_op.join`).
    encodes : tuple of EncodeCost
        The quantization (and encoding) of their inputs.
    vector : tuple of VectorCost
        The rest of the model.
    left : tuple of LeftDense or None
        For every encoding why it is left dense, if it is.
    """

    scheme: Scheme
    ops: tuple[CountedOp, ...]
    encodes: tuple[EncodeCost, ...]
    vector: tuple[VectorCost, ...]
    left: tuple[LeftDense | None, ...]

    @property
    def dense_layers(self) -> Totals:
        """Dense layers with the encoding of their inputs."""
        return Totals.of((*self.ops, *self.encodes))

    @property
    def whole_model(self) -> Totals:
        """Dense layers, encodings and vector unit."""
        return Totals.of((*self.ops, *self.encodes, *self.vector))

    @property
    def mma_cycles(self) -> int:
        """Cycles that the array computes, memory left out."""
        return sum(op.mma_cycles for op in self.ops)


def pass_cost(
    encodings: Sequence[EncodedActivation],
    transformer: TransformerShape | None,
    *,
    tokens: int,
    past: int,
    accelerator: Accelerator,
    scheme: Scheme,
    balance: Balance = "array",
    program_rows: Callable[[int], int] = int,
    count_ops: bool = True,
) -> PassCost:
    """Cost of one pass of a model.

    Parameters
    ----------
    encodings : sequence of EncodedActivation
        All encodings of the pass in order, that of the output layer (one token) included.
    transformer : TransformerShape or None
        Sizes of the rest of the model, all on the vector unit; None: nothing of it is counted.
    tokens, past : int
        Tokens of the pass, and tokens in the cache before.
    accelerator : Accelerator
        Where it runs.
    scheme : {"sparqle", "dense", "native", "a4"}
        How the dense layers work.
    balance : {"array", "time", "none"}
        Where encodings sort their rows, see `balance.choose_block_rows`.
    program_rows : callable
        For how many rows the program is made that serves so many; by default as many.
    count_ops : bool
        Whether dense ops are counted; else the result has none.
    """
    asked, left = [], []
    if scheme == "sparqle":
        # Schedules are chosen for all encodings at once: what they sort, then what is left dense.
        some = encodings if balance != "none" else ()
        choose_together(
            question
            for e in some
            if e.nnz.rows > accelerator.rows
            for question in sorting_questions(e.launches, accelerator, e.density)
        )
        choose_together(
            question
            for e in encodings
            for question in scheme_questions(
                e.programs(e.block_rows(accelerator, balance), program_rows(e.nnz.rows)),
                *(accelerator, e.density),
            )
        )
    for e in encodings:
        block, factors, own, why = 0, NO_FACTORS, scheme, None
        if scheme == "sparqle":
            block, factors = e.block_rows(accelerator, balance), e.factors
            why = e.left_dense(accelerator, block, program_rows(e.nnz.rows))
            if why is not None:
                block, own = 0, "dense"
        left.append(why)
        asked.append(Encoded(e.label, e.nnz, e.launches, own, block, factors, e.density))
    parts = costs_together(asked, accelerator, count_ops=count_ops)
    return PassCost(
        scheme=scheme,
        ops=tuple(op for _, ops in parts for op in ops),
        encodes=tuple(encode for encode, _ in parts),
        vector=()
        if transformer is None
        else vector_costs(transformer, tokens, past, accelerator, scheme=scheme),
        left=tuple(left),
    )
