"""What sorting rows brings a pass, counted with rows in their own order and sorted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.model import PassCost


@dataclass(frozen=True)
class BalanceResult:
    """Dense layers of a pass, rows in their own order and sorted where that was chosen.

    Attributes
    ----------
    goal : {"array", "time", "none"}
        What rows are sorted for, see `target.cost.block_rows`.
    sorted_encodings, encodings : int
        Encodings that sort their rows, and all.
    block_rows : tuple of int
        Rows that are sorted together, all sizes that occur.
    mma_cycles_in_order, mma_cycles : int
        Cycles of the array, both passes.
    layer_cycles_in_order, layer_cycles : int
        Time of the dense layers with their encodings.
    """

    goal: Balance
    sorted_encodings: int
    encodings: int
    block_rows: tuple[int, ...]
    mma_cycles_in_order: int
    mma_cycles: int
    layer_cycles_in_order: int
    layer_cycles: int

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "block_rows": list(self.block_rows)}


def count_balance(sorted_pass: PassCost, in_order: PassCost, goal: Balance) -> BalanceResult:
    """Compare a pass whose encodings sort rows where that was chosen with one where none does.

    Parameters
    ----------
    sorted_pass, in_order : PassCost
        Under ``sparqle``.
    goal : {"array", "time", "none"}
        What rows are sorted for.
    """
    blocks = [encode.block_rows for encode in sorted_pass.encodes]
    return BalanceResult(
        goal=goal,
        sorted_encodings=sum(block > 0 for block in blocks),
        encodings=len(blocks),
        block_rows=tuple(sorted({block for block in blocks if block})),
        mma_cycles_in_order=in_order.mma_cycles,
        mma_cycles=sorted_pass.mma_cycles,
        layer_cycles_in_order=in_order.dense_layers.cycles,
        layer_cycles=sorted_pass.dense_layers.cycles,
    )
