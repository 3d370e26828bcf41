"""How long multiplications take, counted from bits and small numbers; for tests of the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparqle_tvm.target.isa.base import Instruction
from sparqle_tvm.target.isa.compute import MmaLsb, reduction_cycles, step_spans
from sparqle_tvm.target.isa.header import Header


def dense_cycles(
    header: Header, m: int, n: int, k: int, row_split: int, cls: type[Instruction] = MmaLsb
) -> int:
    """Cycles of one dense pass, as the instruction says them."""
    values = {"m": m, "n": n, "k": k, "row_split": row_split}
    return int(np.asarray(cls.cycles(header, values)).item())


def sparse_cycles(header: Header, bits: Any, n: int, row_split: int) -> int:
    """Cycles of MMA.MSB for the bitmap tile `bits`, bool (m, k)."""
    lanes, rows = header.accelerator.lanes, header.accelerator.rows
    segments = np.zeros((len(bits), row_split), dtype=np.int64)
    for segment, begin, end in step_spans(header, bits.shape[1], row_split):
        segments[:, segment] += -(-np.count_nonzero(bits[:, begin:end], axis=1) // lanes)
    slowest = np.maximum.reduceat(segments.max(axis=1), np.arange(0, len(bits), rows))
    blocks = -(-n // header.accelerator.cols) * header.op.weight_slices
    return blocks * int(slowest.sum()) + reduction_cycles(header, n, row_split)
