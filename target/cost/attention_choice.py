"""Which plan and scheme an attention op gets: the fastest by formula of those that fit the buffers.

Attention is left dense where the vector engine is the limit: there planes save time of the array
that nothing waits for, and encoding probabilities costs some.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import KEY_SLICES, AttentionOp
from sparqle_tvm.target.cost.attention import attention_cost, counted_machine, least_cycles
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.cost.scheme_choice import LeftDense
from sparqle_tvm.target.isa.access import ceil_div
from sparqle_tvm.target.simulator.attention_work import Work

_CHUNKS = (128, 256, 512, 1024)
"""Keys of a chunk, if keys do not stay."""

_ROW_GROUPS = (1, 2, 4, 8)
"""Groups of array rows in a block. Of long contexts a block may have a part of one only."""

_SLOTS = ((2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 1, 2), (1, 1, 1))
"""Slots of scores, probabilities and scales, the best first."""

_COMPARED_ROWS = 64
"""Groups of array rows that plans are compared with."""

_TYPICAL = (0.5, 0.25, 0.05)
"""Shares of stored query digits, live keys, and stored digits among their probabilities."""


def choose_plan(op: AttentionOp, accelerator: Accelerator) -> AttentionPlan:
    """Choose the plan with which an op of `rows` and `keys` takes fewest cycles.

    Of many rows the last ones decide, of many key heads some: a plan is the same for all, whether
    they are in planes or plain.

    Raises
    ------
    TargetError
        If scores and probabilities of the smallest block do not fit the buffers: the op cannot run
        on the array.
    """
    return _chosen(op.plain(), accelerator)[0]


def choose_scheme(
    op: AttentionOp, accelerator: Accelerator
) -> tuple[AttentionOp, LeftDense | None]:
    """The op in the scheme that takes fewer cycles, and why if it is left dense.

    Split if both take as long. With keys or values in planes it stays split.

    Raises
    ------
    TargetError
        If the op cannot run on the array, see `choose_plan`.
    """
    if op.scheme == "dense" or "p" in op.key_planes + op.value_planes:
        return op, None
    dense = in_dense(op)
    _, split_cycles = _chosen(op, accelerator)
    try:
        _, dense_cycles = _chosen(dense, accelerator)
    except TargetError:
        return op, None
    if dense_cycles >= split_cycles:
        return op, None
    queries = _TYPICAL[0]
    return dense, LeftDense(split_cycles, dense_cycles, 1 - queries, accelerator.digit_bits)


def in_dense(op: AttentionOp) -> AttentionOp:
    """The same op as the baseline computes it, its cache plain."""
    return replace(op.plain(), scheme="dense", window="unsigned")


@lru_cache(maxsize=1024)
def _chosen(op: AttentionOp, accelerator: Accelerator) -> tuple[AttentionPlan, int]:
    """The plan, and its cycles for as many rows and heads as plans are compared with."""
    rows = max(_COMPARED_ROWS * accelerator.rows // op.group, 1)
    heads = 1 if op.group * op.rows > 8 * accelerator.rows else 3
    some = replace(op, rows=min(op.rows, rows), kv_heads=min(op.kv_heads, heads))
    machine, plans = counted_machine(accelerator), list(_candidates(op, accelerator))
    if not plans:
        raise TargetError(
            f"attention {op.label!r}: scores and probabilities of a row with {op.keys} keys do not "
            f"fit the buffers of accelerator {accelerator.name!r}, and they must not leave the chip"
        )
    bounds = [_least(some, machine, plan) for plan in plans]
    # Best first: of plans that take as long, the first one.
    cycles, best = math.inf, len(plans)
    for i in sorted(range(len(plans)), key=bounds.__getitem__):
        if bounds[i] > cycles:
            break
        cycles, best = min((cycles, best), (_cycles(some, machine, plans[i]), i))
    return plans[best], int(cycles)


@lru_cache(maxsize=4096)
def _least(op: AttentionOp, machine: Accelerator, plan: AttentionPlan) -> int:
    return least_cycles(op, machine, plan, _work(op, machine, plan))


@lru_cache(maxsize=4096)
def _cycles(op: AttentionOp, machine: Accelerator, plan: AttentionPlan) -> int:
    return attention_cost(op, machine, plan, _work(op, machine, plan)).total_cycles


def _work(op: AttentionOp, machine: Accelerator, plan: AttentionPlan) -> Work:
    header = plan.header(op, machine)
    return Work.uniform(header, header.limits(op.rows, op.past), *_TYPICAL)


def _candidates(op: AttentionOp, accelerator: Accelerator) -> Iterator[AttentionPlan]:
    """Plans that fit, each with as many slots as fit."""
    everything = ceil_div(op.keys, 8) * 8
    ways = [(True, everything)]
    ways += [(False, min(chunk, everything)) for chunk in _CHUNKS if chunk // 2 < everything]
    whole = list(_plans(op, accelerator, ways, _block_rows(op, accelerator)))
    rows = accelerator.rows
    while not whole and rows > 1:
        rows //= 2
        whole = list(_plans(op, accelerator, ways, [min(rows, op.group * op.rows)]))
    yield from whole


def _plans(
    op: AttentionOp, accelerator: Accelerator, ways: list[tuple[bool, int]], blocks: list[int]
) -> Iterator[AttentionPlan]:
    for (stays, chunk), rows in itertools.product(ways, blocks):
        split = _row_split(op, accelerator, rows, chunk)
        for slots in _SLOTS:
            plan = AttentionPlan(rows, chunk, stays, split, *slots)
            if plan.fits(op, accelerator):
                yield plan
                break


def _block_rows(op: AttentionOp, accelerator: Accelerator) -> list[int]:
    rows = op.group * op.rows
    if rows <= accelerator.rows:
        return [rows]
    largest = ceil_div(rows, accelerator.rows)
    return sorted({accelerator.rows * min(groups, largest) for groups in _ROW_GROUPS})


def _row_split(op: AttentionOp, accelerator: Accelerator, rows: int, chunk: int) -> int:
    """PE rows per query row with which two dense passes over a chunk take fewest cycles."""
    keys, width = min(chunk, op.keys), op.head_dim

    def cycles(split: int) -> int:
        adding = (split - 1).bit_length()
        total = 0
        for columns, depth in ((keys, width), (width, keys)):
            steps = ceil_div(ceil_div(depth, accelerator.lanes), split)
            total += ceil_div(columns, accelerator.cols) * (KEY_SLICES * steps + adding)
        return total

    most = max(accelerator.rows // rows, 1) if accelerator.rows_share_k else 1
    return min(range(1, most + 1), key=lambda split: (cycles(split), split))
