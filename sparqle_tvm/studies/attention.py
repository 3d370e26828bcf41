"""Attention on the array: as programs ran it, or by formula with what was measured of live keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.models.shapes import ModelShape
from sparqle_tvm.numerics.kv_cache import KEY_GROUP, CacheName, parse_kv
from sparqle_tvm.results.passes import CountedAttention
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.cost.attention import AttentionCost, attention_cost, counted_machine
from sparqle_tvm.target.cost.attention_choice import choose_plan, choose_scheme, in_dense
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.events import simulated_events
from sparqle_tvm.target.cost.vector import CacheToken, TransformerShape
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.attention import DrnOut
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.isa.load import MSB_POINTER_BYTES
from sparqle_tvm.target.op import ProgramScheme
from sparqle_tvm.target.simulator.attention_work import MeanRows, Work

if TYPE_CHECKING:
    from sparqle_tvm.runtime.launch import AttentionLaunch
    from sparqle_tvm.target.simulator.attention import AttentionResult

LABEL = "attention"

_CLASSES = 6
"""Layers are counted in so many classes of equal size, by their share of live keys."""

_PLACES = 6
_PLACE_BLOCKS = 48
"""A long prefill is counted at so many places, of so many blocks each."""


@dataclass(frozen=True)
class Shares:
    """What the time of an attention op depends on.

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


_NOTHING_STORED = Shares(0.0, 1.0, 0.0, 0.0)


def counted_attention(
    shape: ModelShape | TransformerShape,
    tokens: int,
    past: int,
    batch: int,
    accelerator: Accelerator,
    schemes: Sequence[Scheme],
    seed: int,
    kv: str = "int8",
) -> list[CountedAttention]:
    """Count attention of all layers: the baselines once, ``sparqle`` by classes of layers.

    The cache is stored as `kv` says (`cache_rows`); baselines have the same integers, plain.

    Raises
    ------
    InvalidArgumentError
        If `kv` is no storage.
    TargetError
        If a row with so many keys does not fit the buffers.
    """
    storage = parse_kv(kv)
    bits: dict[str, Any] = {
        "key_bits": storage.keys.plain_bits,
        "value_bits": storage.values.plain_bits,
    }
    heads = (shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
    dense = AttentionOp(
        *(tokens, past + tokens, *heads),
        label=LABEL,
        scheme="dense",
        window="unsigned",
        **bits,
    )
    nothing = (_NOTHING_STORED,) * _PLACES
    baselines: dict[str, AttentionCost] = {
        scheme: _cost(dense, accelerator, scheme, nothing, seed)
        for scheme in schemes
        if scheme != "sparqle"
    }
    if "sparqle" not in schemes:
        return [CountedAttention(LABEL, batch * shape.layers, baselines)]
    op = replace(dense, scheme="sparqle", window="signed")
    plan = choose_plan(op, accelerator)
    found = []
    for layers in _layer_classes(shape.layers, op.keys):
        shares = tuple(
            _mean_shares(shape.layers, layers, keys, plan.block_rows / op.group)
            for _, keys in _places(op, plan)
        )
        rows = cache_rows(op.plain(), shape.layers, kv, layers)
        # On its way into the chip a cache is expanded if it is not int8 in some layer and head.
        planes: dict[str, Any] = {
            f"{what}_planes": "p" if r.digits.any() else "-" for what, r in rows.items()
        }
        mine, left = choose_scheme(replace(op, **planes), accelerator)
        if left is None:
            stored = (shape.layers, kv, layers)
            cost = _cost(mine, accelerator, "sparqle", shares, seed, stored)
        else:
            cost = baselines.get("dense") or _cost(mine, accelerator, "dense", nothing, seed)
        costs = {str(scheme): baselines.get(scheme, cost) for scheme in schemes}
        found.append(CountedAttention(LABEL, batch * len(layers), costs, left))
    return found


def launched_attention(
    launches: Sequence[AttentionLaunch], accelerator: Accelerator, last: bool
) -> list[CountedAttention]:
    """Count attention as its programs ran; the baseline as programs would with the same sizes.

    Parameters
    ----------
    launches : sequence of AttentionLaunch
        One for each layer, of all tokens.
    accelerator : Accelerator
        Where they ran.
    last : bool
        Whether to count a step of the last token after the others instead: it meets the same
        queries and probabilities.
    """
    from sparqle_tvm.target.compile.attention import attention_program
    from sparqle_tvm.target.simulator.attention import simulate_attention_timing

    counted, dense = [], dict[AttentionOp, AttentionCost]()
    for launch in launches:
        rows, past, result = launch.rows, launch.past, launch.result
        if last:
            rows, past = 1, past + rows - 1
        ran = launch.program.header.op
        left = choose_scheme(_split(ran), accelerator)[1] if ran.scheme == "dense" else None
        op = replace(ran, rows=rows, keys=past + rows)
        if last:
            op, left = choose_scheme(_split(op), accelerator)
            program = attention_program(op, accelerator, choose_plan(op, accelerator), verify=False)
            assert result.work is not None
            work = result.work.of_last_token(program.header, program.header.limits(rows, past))
            result = simulate_attention_timing(program, rows, past, work)
        plain = in_dense(op)
        if plain not in dense:
            plan = choose_plan(plain, accelerator)
            program = attention_program(plain, accelerator, plan, verify=False)
            header = program.header
            work = Work.uniform(header, header.limits(rows, past), 0.0, 1.0, 0.0)
            found = simulate_attention_timing(program, rows, past, work)
            dense[plain] = simulated_attention_cost(found, plain)
        costs = {"dense": dense[plain], "sparqle": simulated_attention_cost(result, op)}
        counted.append(CountedAttention(launch.label, 1, costs, left))
    return counted


def _split(op: AttentionOp) -> AttentionOp:
    """The op before anybody asked whether it is left dense."""
    return replace(op, scheme="sparqle", window="signed") if op.scheme == "dense" else op


def simulated_attention_cost(result: AttentionResult, op: AttentionOp) -> AttentionCost:
    """What a program of attention cost that ran with the sizes of `op`."""
    counts, machine = result.counts, result.bound.header.accelerator
    cached = (Tensor.KEYS, Tensor.VALUES, Tensor.KEY_SCALES)
    engines = result.engines
    return AttentionCost(
        label=op.label,
        scheme=op.scheme,
        macs=op.macs,
        mma_cycles=result.array.busy,
        waiting_cycles=round(counts.msb.waiting_lane_cycles / machine.macs_per_cycle),
        vector_cycles=engines[Engine.VECTOR].busy,
        drain_cycles=engines[Engine.STORE].busy_cycles.get(DrnOut.MNEMONIC, 0),
        dma_cycles=result.dma_cycles,
        descriptors=counts.descriptors,
        total_cycles=result.total_cycles,
        cache_bytes=sum(counts.dram_read_bytes.get(tensor, 0) for tensor in cached),
        descriptor_cycles=counts.descriptors * machine.dma_descriptor_cycles,
        events=simulated_events(result),
    )


@lru_cache(maxsize=256)
def _layer_classes(layers: int, keys: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of layers, together those with alike shares of live keys."""
    measured = measured_attention()
    order = sorted(range(layers), key=lambda i: measured.live(i, layers, keys, 1)[0])
    return tuple(tuple(part.tolist()) for part in np.array_split(order, min(_CLASSES, layers)))


@lru_cache(maxsize=4096)
def _mean_shares(of: int, layers: tuple[int, ...], keys: int, tokens: float) -> Shares:
    """What was measured at the depth of these layers of so many, by keys and tokens of a block."""
    measured = measured_attention()
    nearest = int(np.argmin(np.abs(np.log(np.array(measured.contexts) / keys))))
    found = []
    for layer in layers:
        live, runs = measured.live(layer, of, keys, max(round(tokens), 1))
        one = measured.layer_at(layer, of)
        # Of all keys, that is; those that are not live have none.
        stored = min((1 - one.p_msb_sparsity[nearest]) / max(live, 1e-9), 1.0)
        found.append((1 - one.q_msb_sparsity, live, runs, stored))
    return Shares(*np.mean(found, axis=0).tolist())


def _places(op: AttentionOp, plan: AttentionPlan) -> list[tuple[int, int]]:
    """Tokens and keys of the parts that an op is counted in: the whole op `_PLACES` times, or so
    many places of it.
    """
    some = max(_PLACE_BLOCKS * plan.block_rows // op.group, 1)
    if plan.stays or op.rows <= _PLACES * some:
        return [(op.rows, op.keys)] * _PLACES
    middles = [op.past + op.rows * (2 * i + 1) // (2 * _PLACES) for i in range(_PLACES)]
    return [(some, max(middle + some // 2, some)) for middle in middles]


@lru_cache(maxsize=256)
def cache_rows(
    op: AttentionOp, layers: int, kv: str, chosen: tuple[int, ...]
) -> dict[CacheName, MeanRows]:
    """What a key and a value take in the cache, mean of the chosen ones of so many layers.

    With ``planes`` each head is stored as is smaller, by what was measured at the same depth.
    """
    measured, storage = measured_attention(), parse_kv(kv)
    found: dict[CacheName, list[MeanRows]] = {"key": [], "value": []}
    for layer in chosen:
        if kv == "planes":
            storage = measured.storage(layer, layers, op.kv_heads)
        one = replace(op, key_planes=storage.keys.planes, value_planes=storage.values.planes)
        for what, rows in found.items():
            levels = storage.keys.levels if what == "key" else storage.values.levels
            stored = measured.stored(what, layer, layers, op.kv_heads, levels)
            rows.append(MeanRows.of(one, what, stored))
    return {what: MeanRows.mean(rows) for what, rows in found.items()}


def cache_token(
    shape: ModelShape | TransformerShape, kv: str, scheme: Scheme = "sparqle"
) -> CacheToken:
    """What a token takes in the cache of a layer; baselines have the same integers, plain."""
    storage, width = parse_kv(kv), shape.head_dim
    bits: dict[str, Any] = {
        "key_bits": storage.keys.plain_bits,
        "value_bits": storage.values.plain_bits,
    }
    op = AttentionOp(1, 1, shape.kv_heads, 1, width, **bits)
    if scheme != "sparqle":
        plain = op.row_bytes("key") + op.row_bytes("value")
        return CacheToken(shape.kv_heads * plain, 0.0)
    rows = cache_rows(op, shape.layers, kv, tuple(range(shape.layers)))
    nbytes = encoded = 0.0
    for what, found in rows.items():
        # Of the two pointers that a load moves, one is stored for so many tokens.
        shared = 2 * (KEY_GROUP if what == "key" else 1)
        nbytes += float(np.sum(found.bytes + found.pointers / shared))
        encoded += width * float(np.sum(found.pointers)) / MSB_POINTER_BYTES
    return CacheToken(nbytes, encoded)


def _cost(
    op: AttentionOp,
    accelerator: Accelerator,
    scheme: Scheme,
    shares: tuple[Shares, ...],
    seed: int,
    stored: tuple[int, str, tuple[int, ...]] | None = None,
) -> AttentionCost:
    """Cost of an op of one layer; `stored` is the cache, as in `cache_rows`."""
    program: ProgramScheme = "sparqle" if scheme == "sparqle" else "dense"
    plan = choose_plan(replace(op, scheme=program), accelerator)
    return _cost_of(op, counted_machine(accelerator), plan, scheme, shares, seed, stored)


@lru_cache(maxsize=1024)
def _cost_of(
    op: AttentionOp,
    machine: Accelerator,
    plan: AttentionPlan,
    scheme: Scheme,
    shares: tuple[Shares, ...],
    seed: int,
    stored: tuple[int, str, tuple[int, ...]] | None,
) -> AttentionCost:
    rows_stored = None if stored is None else cache_rows(op.plain(), *stored)
    places = _places(op, plan)
    total: AttentionCost | None = None
    for (rows, keys), share in zip(places, shares, strict=True):
        some = replace(op, rows=rows, keys=keys)
        header = plan.header(some, machine)
        work = Work.uniform(
            header,
            header.limits(rows, keys - rows),
            *(share.queries, share.live, share.probabilities),
            runs=share.runs,
            rng=np.random.default_rng(seed),
            stored=rows_stored,
        )
        cost = attention_cost(some, machine, plan, work, scheme)
        if rows == op.rows:
            return cost
        cost = cost.scaled(op.rows / len(places) / rows)
        total = cost if total is None else total + cost
    assert total is not None
    # What it is does not depend on how it is counted.
    return replace(total, macs=op.macs)
