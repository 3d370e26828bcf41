"""Which plan and scheme an attention op gets, by formula, of those that fit the buffers.

Of the plans whose time is within `TOLERANCE` of the least, that of least energy: where the
vector engine is the limit, keys that stay take as long as keys that every block loads again.
Attention is left dense where the vector engine is the limit: there planes save time of the array
that nothing waits for, and encoding probabilities costs some.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import KEY_SLICES, AttentionOp
from sparqle_tvm.target.cost.attention import AttentionTime, counted_machine
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.scheme_choice import LeftDense
from sparqle_tvm.target.isa.access import ceil_div
from sparqle_tvm.target.simulator.attention_work import Work

TOLERANCE = 0.01
"""Share of the least time that less energy may cost; of dense ops `tiling.TOLERANCE`."""

_LEAST_CHUNK = 128
"""Keys of a chunk at least, if keys do not stay and there are more."""

_ROW_GROUPS = (1, 2, 4, 8)
"""Groups of array rows in a block. Of long contexts a block may have a part of one only."""

_SLOTS = ((2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 1, 2), (1, 1, 1))
"""Slots of scores, probabilities and scales, the best first."""

_COMPARED_ROWS = 64
"""Groups of array rows that plans are compared with."""


@dataclass(frozen=True)
class Shares:
    """What the time of blocks of some tokens depends on.

    Attributes
    ----------
    queries, probabilities : float
        Shares of stored MSB digits in queries, and in probabilities of live keys.
    live, runs : float
        Live keys of a block, and runs of them, as shares of its keys.
    """

    queries: float
    live: float
    runs: float
    probabilities: float


@dataclass(frozen=True)
class ExpectedAttention:
    """What plan and scheme of an op with some number of keys are chosen for.

    Attributes
    ----------
    queries, probabilities : float
        Shares of stored MSB digits in queries, and in all probabilities.
    tokens : tuple of float
        Query tokens of a block, rising.
    live, runs : tuple of float
        By them: live keys of a block, and runs of such keys, as shares of its keys.
    """

    queries: float
    probabilities: float
    tokens: tuple[float, ...]
    live: tuple[float, ...]
    runs: tuple[float, ...]

    def shares(self, tokens: float) -> Shares:
        """Of a block of so many tokens; between two, linear in their logarithms."""
        at, known = np.log(max(tokens, 1)), np.log(self.tokens)
        live, runs = (float(np.interp(at, known, table)) for table in (self.live, self.runs))
        stored = min(self.probabilities / max(live, 1e-9), 1.0)
        return Shares(self.queries, live, min(runs, live), stored)


_CONTEXTS = (64, 512, 2048, 8192)
_BLOCK_TOKENS = (1.0, 4.0, 16.0, 64.0)
_PROBABILITIES = (0.235, 0.044, 0.016, 0.005)
_LIVE = (
    *((0.9, 0.96, 0.99, 1.0), (0.45, 0.62, 0.79, 0.91)),
    *((0.23, 0.37, 0.53, 0.69), (0.09, 0.14, 0.21, 0.3)),
)
_RUNS = (
    *((0.11, 0.07, 0.04, 0.02), (0.1, 0.1, 0.08, 0.04)),
    *((0.07, 0.09, 0.1, 0.09), (0.03, 0.04, 0.06, 0.07)),
)
# The mean of what models/data/attention_smollm2.json has by layer; a test holds it to that.


@lru_cache
def typical_attention(keys: int) -> ExpectedAttention:
    """What is expected of an op of so many keys if nothing is known of it."""
    at, known = np.log(max(keys, 1)), np.log(_CONTEXTS)
    live, runs = (
        tuple(float(np.interp(at, known, column)) for column in zip(*table, strict=True))
        for table in (_LIVE, _RUNS)
    )
    probabilities = float(np.interp(at, known, _PROBABILITIES))
    return ExpectedAttention(0.64, probabilities, _BLOCK_TOKENS, live, runs)


def choose_plan(
    op: AttentionOp, accelerator: Accelerator, expected: ExpectedAttention | None = None
) -> AttentionPlan:
    """Choose the plan of an op of `rows` and `keys`: least energy of those of least time.

    Of many rows the last ones decide, of many key heads some: a plan is the same for all, whether
    they are in planes or plain. It is chosen for what is expected, by default what is typical.

    Raises
    ------
    TargetError
        If scores and probabilities of the smallest block do not fit the buffers: the op cannot run
        on the array.
    """
    return _chosen(op.plain(), accelerator, _what_matters(op, expected))[0]


def choose_scheme(
    op: AttentionOp, accelerator: Accelerator, expected: ExpectedAttention | None = None
) -> tuple[AttentionOp, LeftDense | None]:
    """The op in the scheme that takes fewer cycles, and why if it is left dense.

    Split if both take as long. Keys and values stay as they are stored, and are compared plain. The
    cycles are those of the whole op, as the part says that plans are compared with.

    Raises
    ------
    TargetError
        If the op cannot run on the array, see `choose_plan`.
    """
    if op.scheme == "dense":
        return op, None
    split, dense = op.plain(), in_dense(op)
    expected = _what_matters(split, expected)
    _, split_cycles = _chosen(split, accelerator, expected)
    try:
        _, dense_cycles = _chosen(dense, accelerator, _what_matters(dense, None))
    except TargetError:
        return op, None
    if dense_cycles >= split_cycles:
        return op, None
    whole = split.pairs / _compared(split, accelerator).pairs
    cycles = round(split_cycles * whole), round(dense_cycles * whole)
    left = replace(op, scheme="dense", window="unsigned")
    return left, LeftDense(*cycles, 1 - expected.queries, accelerator.digit_bits)


def _what_matters(op: AttentionOp, expected: ExpectedAttention | None) -> ExpectedAttention:
    """What is expected, if the op depends on it: without planes all values are loaded."""
    known = expected if op.scheme == "sparqle" else None
    return known or typical_attention(op.keys)


def in_dense(op: AttentionOp) -> AttentionOp:
    """The same op as the baseline computes it, its cache plain."""
    return replace(op.plain(), scheme="dense", window="unsigned")


def _compared(op: AttentionOp, accelerator: Accelerator) -> AttentionOp:
    """As many rows and heads of an op as plans are compared with: its last ones."""
    rows = max(_COMPARED_ROWS * accelerator.rows // op.group, 1)
    # Of few blocks all heads: what comes before the first of them is little beside all.
    heads = 1 if op.group * op.rows > 8 * accelerator.rows else op.kv_heads
    return replace(op, rows=min(op.rows, rows), kv_heads=heads)


@lru_cache(maxsize=1024)
def _chosen(
    op: AttentionOp, accelerator: Accelerator, expected: ExpectedAttention
) -> tuple[AttentionPlan, int]:
    """The plan, and its cycles for `_compared`."""
    some, machine = _compared(op, accelerator), counted_machine(accelerator)
    asked = [
        (some, machine, plan, expected.shares(plan.block_rows / op.group))
        for plan in _candidates(op, accelerator)
    ]
    if not asked:
        raise TargetError(
            f"attention {op.label!r}: scores and probabilities of a row with {op.keys} keys do not "
            f"fit the buffers of accelerator {accelerator.name!r}, and they must not leave the chip"
        )
    # Best first: what takes longer at least than may be taken is not walked through.
    found: list[tuple[int, _Asked]] = []
    limit = float("inf")
    for least, one in sorted(((_least(*one), one) for one in asked), key=itemgetter(0)):
        if least <= limit:
            cycles = _cycles(*one)
            found.append((cycles, one))
            limit = min(limit, (1 + TOLERANCE) * cycles)
    table = default_table(accelerator)

    def joules(one: _Asked) -> float:
        return energy(_events(*one), accelerator, table).joules.mid

    good = [each for each in found if each[0] <= limit]
    cycles, one = min(good, key=lambda each: (joules(each[1]), each[0]))
    return one[2], cycles


_Asked = tuple[AttentionOp, Accelerator, AttentionPlan, Shares]


@lru_cache(maxsize=4096)
def _least(*asked: Any) -> int:
    return _time(*asked).least_cycles


@lru_cache(maxsize=4096)
def _cycles(*asked: Any) -> int:
    return _time(*asked).total_cycles()


@lru_cache(maxsize=4096)
def _events(*asked: Any) -> Events:
    return _time(*asked).cost().events


@lru_cache(maxsize=64)
def _time(
    op: AttentionOp, machine: Accelerator, plan: AttentionPlan, share: Shares
) -> AttentionTime:
    header = plan.header(op, machine)
    work = Work.uniform(
        header,
        header.limits(op.rows, op.past),
        *(share.queries, share.live, share.probabilities),
        runs=share.runs,
    )
    return AttentionTime(op, machine, plan, work)


def _candidates(op: AttentionOp, accelerator: Accelerator) -> Iterator[AttentionPlan]:
    """Plans that fit, each with as many slots as fit."""
    everything = ceil_div(op.keys, 8) * 8
    ways, count = [(True, everything), (False, everything)], 2
    while (chunk := ceil_div(ceil_div(op.keys, count), 8) * 8) >= _LEAST_CHUNK:
        ways, count = [*ways, (False, chunk)], 2 * count
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
