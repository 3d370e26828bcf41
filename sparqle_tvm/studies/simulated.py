"""Cost of a pass with its dense layers simulated: programs instead of formulas.

Encodings and the vector unit are counted as in `target.cost.model`; every dense op runs as the
program that the code generator makes for it, timing only, with its real bitmap. Equal ops share
one program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.window import PLAIN, window_of
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import Bound
from sparqle_tvm.target.cost.balance import Balance
from sparqle_tvm.target.cost.events import Events, simulated_events
from sparqle_tvm.target.cost.model import EncodedActivation, PassCost, pass_cost
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.op import DenseOp, ProgramScheme
from sparqle_tvm.target.program import Program

if TYPE_CHECKING:
    from sparqle_tvm.target.compile.library import ProgramLibrary, Schedules
    from sparqle_tvm.target.op import DenseOp


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
    mma_cycles : int
        Cycles that the array was busy.
    dma_cycles : int
        Cycles that the DRAM channel was busy.
    dram_bytes : int
        Bytes read and written.
    total_cycles : int
        Cycles until the last engine had ended.
    stalled_cycles : int
        Cycles that the array waited.
    events : Events
        What costs energy.
    """

    label: str
    scheme: ProgramScheme
    macs: int
    mma_cycles: int
    dma_cycles: int
    dram_bytes: int
    total_cycles: int
    stalled_cycles: int
    events: Events

    @property
    def bound(self) -> Bound:
        """What limits the op."""
        return "compute" if self.mma_cycles >= self.dma_cycles else "memory"


@dataclass
class ProgramCache:
    """Programs of dense ops for one accelerator, each generated and verified once.

    Attributes
    ----------
    accelerator : Accelerator
        The machine.
    tuned : Schedules, optional
        Schedules to prefer to the default ones, of a tuning database.
    """

    accelerator: Accelerator
    tuned: Schedules | None = None

    @cached_property
    def library(self) -> ProgramLibrary:
        """The programs."""
        from sparqle_tvm.target.compile.library import ProgramLibrary

        return ProgramLibrary(self.accelerator, self.tuned)

    def get(
        self,
        shape: DenseOp,
        scheme: ProgramScheme,
        window: str,
        readers: Sequence[DenseOp] = (),
        block_rows: int = 0,
    ) -> Program:
        """The program of an op; row counts share those of their bucket.

        `readers` are all ops that read the same encoding: they share the K chunk.
        """
        spec = self._spec(shape, scheme, window, block_rows)
        specs = [self._spec(r, scheme, window, block_rows) for r in readers] or [spec]
        decisions = self.library.decisions(spec, specs, shape.m)
        return self.library.program(spec, decisions)

    def _spec(self, shape: DenseOp, scheme: ProgramScheme, window: str, block_rows: int) -> DenseOp:
        from sparqle_tvm.target.compile.tir import bucket

        return replace(
            shape,
            m=bucket(shape.m, self.accelerator.rows),
            window=window_of(window).name if scheme == "sparqle" else PLAIN,
            scheme=scheme,
            block_rows=block_rows,
        )


def simulate_op(
    shape: DenseOp,
    nnz: RowNnz,
    scheme: ProgramScheme,
    window: str,
    programs: ProgramCache,
    readers: Sequence[DenseOp] = (),
    block_rows: int = 0,
) -> SimulatedOp:
    """Run one dense op without values.

    Parameters
    ----------
    shape : DenseOp
        The op.
    nnz : RowNnz
        Stored MSB digits of its activations.
    scheme, window, block_rows
        As in `target.cost.analytical.dense_op_cost`.
    programs : ProgramCache
        Takes and keeps the program.
    readers : sequence of DenseOp
        All ops that read the same encoding; by default only this one.
    """
    from sparqle_tvm.target.simulator import simulate_timing

    program = programs.get(shape, scheme, window, readers, block_rows)
    result = simulate_timing(program, shape.m, nnz if scheme == "sparqle" else None)
    array, store = result.engines[Engine.MMA], result.engines[Engine.STORE]
    return SimulatedOp(
        label=shape.label,
        scheme=scheme,
        macs=shape.macs,
        mma_cycles=array.busy,
        dma_cycles=result.engines[Engine.LOAD].busy + store.busy_cycles.get("ST.OUT", 0),
        dram_bytes=result.counts.dram_bytes,
        total_cycles=result.total_cycles,
        stalled_cycles=array.stalled,
        events=simulated_events(result),
    )


def simulated_pass_cost(
    encodings: Sequence[EncodedActivation],
    transformer: TransformerShape,
    *,
    tokens: int,
    past: int,
    programs: ProgramCache,
    scheme: ProgramScheme,
    balance: Balance = "array",
    progress: Callable[[], None] = lambda: None,
) -> PassCost:
    """Cost of one pass of a model, its dense layers simulated.

    Parameters
    ----------
    encodings, transformer, tokens, past, scheme, balance
        As in `target.cost.model.pass_cost`.
    programs : ProgramCache
        Programs of the accelerator.
    progress : callable
        Called after every op.
    """
    counted = pass_cost(
        encodings,
        transformer,
        tokens=tokens,
        past=past,
        accelerator=programs.accelerator,
        scheme=scheme,
        balance=balance,
    )
    ops = []
    for encoding, encode in zip(encodings, counted.encodes, strict=True):
        for shape in encoding.consumers:
            ops.append(
                simulate_op(
                    *(shape, encoding.nnz, scheme, encoding.window, programs),
                    readers=encoding.consumers,
                    block_rows=encode.block_rows,
                )
            )
            progress()
    return PassCost(scheme, tuple(ops), counted.encodes, counted.vector)
