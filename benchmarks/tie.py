"""The formulas of `target.cost` beside the simulator, op by op.

Both take the same tiles, so what differs is the formula: the array's cycles and the bytes have to
be equal, the time nearly (`sparqle_tvm.target.cost.overlap` says what it leaves out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.cost.analytical import Bound, OpCost, encoding_costs
from sparqle_tvm.target.cost.events import Events, simulated_events
from sparqle_tvm.target.cost.model import EncodedActivation
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import DenseOp, ProgramScheme
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import simulate_timing


@dataclass(frozen=True)
class OpTie:
    """One dense op by formula and on the simulator.

    Attributes
    ----------
    shape : DenseOp
        The op.
    analytical : OpCost
        By formula.
    total_cycles, mma_cycles, dram_bytes : int
        What the simulator counted.
    events : Events
        What costs energy, as the simulator counted it.
    stalls : mapping of str to mapping of str to int
        Cycles that each engine (``LOAD``, ``MMA``, ``STORE``) stalled, per reason.
    """

    shape: DenseOp
    analytical: OpCost
    total_cycles: int
    mma_cycles: int
    dram_bytes: int
    events: Events
    stalls: Mapping[str, Mapping[str, int]]

    @property
    def bound(self) -> Bound:
        """What limits the op."""
        return self.analytical.bound

    @property
    def difference(self) -> float:
        """Time by formula over that of the simulator, less 1."""
        return self.analytical.total_cycles / self.total_cycles - 1


def tie_encoding(
    encoding: EncodedActivation,
    accelerator: Accelerator,
    scheme: ProgramScheme,
    block_rows: int = 0,
) -> tuple[OpTie, ...]:
    """Count the dense ops that read an encoding twice.

    Parameters
    ----------
    encoding : EncodedActivation
        Digits and readers.
    accelerator : Accelerator
        Where they run.
    scheme : {"sparqle", "dense"}
        How the activations are stored and computed.
    block_rows : int
        Rows that the encoding sorts together, 0: none.

    Raises
    ------
    InvalidArgumentError
        If the shapes of the readers are not those of the digits.
    TargetError
        If no tile fits the buffers.
    """
    _, costs = encoding_costs(
        encoding.label, encoding.nnz, encoding.launches, accelerator, scheme, block_rows
    )
    return tuple(
        _tie(shape, encoding.nnz, cost, accelerator, scheme, block_rows)
        for shape, cost in zip(encoding.launches, costs, strict=True)
    )


def _tie(
    shape: DenseOp,
    nnz: RowNnz,
    cost: OpCost,
    accelerator: Accelerator,
    scheme: ProgramScheme,
    block_rows: int,
) -> OpTie:
    # The label would keep equal ops from sharing a program.
    program = _program(
        *(replace(shape, label=""), cost.tiling.schedule, accelerator, scheme, block_rows)
    )
    result = simulate_timing(program, shape.m, nnz if scheme == "sparqle" else None)
    return OpTie(
        shape=shape,
        analytical=cost,
        total_cycles=result.total_cycles,
        mma_cycles=result.array.busy,
        dram_bytes=result.counts.dram_bytes,
        events=simulated_events(result),
        stalls={e.name: dict(time.stalled_cycles) for e, time in result.engines.items()},
    )


@lru_cache(maxsize=1024)
def _program(
    shape: DenseOp,
    decisions: Decisions,
    accelerator: Accelerator,
    scheme: ProgramScheme,
    block_rows: int,
) -> Program:
    spec = replace(shape.in_scheme(scheme), block_rows=block_rows)
    # Only time is asked for: what would be wrong with a program is no matter here.
    return generate(schedule_with(spec, accelerator, decisions), spec, accelerator, verify=False)


def draw_digits(
    rng: np.random.Generator, density: float, rows: int, in_features: int, spread: float = 0.3
) -> RowNnz:
    """Draw digits as uneven as those of a language model: per token and per span of 8 columns.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    density : float
        Mean share of stored digits, 0 to 1.
    rows, in_features : int
        M and K (a multiple of 8).
    spread : float
        Standard deviation of the density, relative, over tokens, and again over spans.
    """
    tokens, spans = (
        rng.gamma(1 / spread**2, spread**2, size=size)
        for size in ((rows, 1), (1, -(-in_features // 8)))
    )
    share = np.clip(density * tokens * spans, 0, 1)
    return RowNnz(rng.binomial(8, share).astype(np.int32), 8, in_features)
