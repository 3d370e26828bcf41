"""Attention on the array: as programs ran it, or by formula with what was measured of live keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.models.shapes import ModelShape
from sparqle_tvm.numerics.kv_cache import CacheName, KvStorage, parse_kv
from sparqle_tvm.results.counted import CountedAttention
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.cost.attention import AttentionCost, attention_cost, counted_machine
from sparqle_tvm.target.cost.attention_choice import (
    ExpectedAttention,
    Shares,
    choose_plan,
    choose_scheme,
    in_dense,
)
from sparqle_tvm.target.cost.attention_plan import AttentionPlan
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.events import simulated_events
from sparqle_tvm.target.cost.vector import CacheToken, TransformerShape
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.attention import DrnOut
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.op import ProgramScheme
from sparqle_tvm.target.simulator.attention_work import (
    CACHE_NAMES,
    AttentionCache,
    MeanRows,
    Work,
)

if TYPE_CHECKING:
    from sparqle_tvm.runtime.launch import AttentionLaunch
    from sparqle_tvm.target.simulator.attention import AttentionResult

LABEL = "attention"

_ALL_LIVE = Shares(0.0, 1.0, 0.0, 0.0)

_CLASSES = 6
"""Layers are counted in so many classes of equal size, by their share of live keys."""

_PLACES = 6
_PLACE_BLOCKS = 48
"""A long prefill is counted at so many places, of so many blocks each."""


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
    baselines: dict[str, AttentionCost] = {
        scheme: _cost(dense, accelerator, scheme, None, seed)[0]
        for scheme in schemes
        if scheme != "sparqle"
    }
    if "sparqle" not in schemes:
        plain = {what: MeanRows.of(dense, what) for what in CACHE_NAMES}
        cache = AttentionCache.of(dense, plain, 1.0)
        return [CountedAttention(LABEL, batch * shape.layers, baselines, cache)]
    op = replace(dense, scheme="sparqle", window="signed")
    found = []
    for layers in _layer_classes(shape.layers, op.keys):
        some = _Layers(layers, shape.layers, kv)
        rows = cache_rows(op, shape.layers, kv, layers)
        # On its way into the chip a cache is expanded if it is not int8 in some layer and head.
        planes: dict[str, Any] = {
            f"{what}_planes": "p" if r.digits.any() else "-" for what, r in rows.items()
        }
        mine, left = choose_scheme(replace(op, **planes), accelerator, some.expected(op.keys))
        cost, live = _cost(mine, accelerator, mine.scheme, some, seed)
        held = {_storage(op, layer, shape.layers, kv) for layer in layers}
        letters = [{s.keys.planes for s in held}, {s.values.planes for s in held}]
        key_planes, value_planes = ("".join(some) if len(some) == 1 else "" for some in letters)
        cache = replace(
            AttentionCache.of(op, rows, live), key_planes=key_planes, value_planes=value_planes
        )
        costs = {str(scheme): baselines.get(scheme, cost) for scheme in schemes}
        found.append(CountedAttention(LABEL, batch * len(layers), costs, cache, left))
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
        assert result.cache is not None
        counted.append(CountedAttention(launch.label, 1, costs, result.cache, left))
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


@dataclass(frozen=True)
class _Layers:
    """Layers of a model that are counted as one: their numbers, of how many, and their cache."""

    chosen: tuple[int, ...]
    of: int
    kv: str

    def expected(self, keys: int) -> ExpectedAttention:
        """What is to be expected of their attention over so many keys."""
        return _expected(self.chosen, self.of, keys)


@lru_cache(maxsize=4096)
def _expected(chosen: tuple[int, ...], layers: int, keys: int) -> ExpectedAttention:
    return measured_attention().expected(chosen, layers, keys)


@lru_cache(maxsize=256)
def _layer_classes(layers: int, keys: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of layers, together those with alike shares of live keys."""
    measured = measured_attention()
    order = sorted(range(layers), key=lambda i: measured.live(i, layers, keys, 1)[0])
    return tuple(tuple(part.tolist()) for part in np.array_split(order, min(_CLASSES, layers)))


def _places(op: AttentionOp, plan: AttentionPlan) -> list[tuple[int, int]]:
    """Tokens and keys of the parts that an op is counted in: all of it, or so many places."""
    some = max(_PLACE_BLOCKS * plan.block_rows // op.group, 1)
    if plan.stays or op.rows <= _PLACES * some:
        return [(op.rows, op.keys)]
    middles = [op.past + op.rows * (2 * i + 1) // (2 * _PLACES) for i in range(_PLACES)]
    return [(some, max(middle + some // 2, some)) for middle in middles]


@lru_cache(maxsize=256)
def cache_rows(
    op: AttentionOp, layers: int, kv: str, chosen: tuple[int, ...]
) -> dict[CacheName, MeanRows]:
    """What a key and a value take in the cache, mean of the chosen ones of so many layers.

    With ``planes`` each head is stored as is smaller, by what was measured at the same depth.
    """
    measured = measured_attention()
    found: dict[CacheName, list[MeanRows]] = {"key": [], "value": []}
    for layer in chosen:
        storage = _storage(op, layer, layers, kv)
        one = replace(op, key_planes=storage.keys.planes, value_planes=storage.values.planes)
        for what, rows in found.items():
            levels = storage.keys.levels if what == "key" else storage.values.levels
            stored = measured.stored(what, layer, layers, op.kv_heads, levels)
            rows.append(MeanRows.of(one, what, stored))
    return {what: MeanRows.mean(rows) for what, rows in found.items()}


def _storage(op: AttentionOp, layer: int, layers: int, kv: str) -> KvStorage:
    """How a layer of so many stores keys and values."""
    if kv == "planes":
        return measured_attention().storage(layer, layers, op.kv_heads, op.head_dim)
    return parse_kv(kv)


def written_token(attention: Sequence[CountedAttention], scheme: Scheme) -> CacheToken:
    """What a token takes in the cache of a layer; baselines have the same integers, plain."""
    caches, times = [a.cache for a in attention], [a.times for a in attention]
    if scheme != "sparqle":
        return CacheToken(caches[0].plain_bytes, 0.0)
    nbytes = np.average([c.key_bytes + c.value_bytes for c in caches], weights=times)
    encoded = np.average([c.encoded_elements for c in caches], weights=times)
    queries = np.average([a.left is None for a in attention], weights=times)
    return CacheToken(float(nbytes), float(encoded), float(queries))


def _cost(
    op: AttentionOp,
    accelerator: Accelerator,
    scheme: Scheme,
    layers: _Layers | None,
    seed: int,
) -> tuple[AttentionCost, float]:
    """Cost of an op of one of these layers (None: the cache is plain), and the share of the keys
    that are live: of those that only the split scheme leaves out, all.
    """
    program: ProgramScheme = "sparqle" if scheme == "sparqle" else "dense"
    known = None if layers is None else layers.expected(op.keys)
    plan = choose_plan(replace(op, scheme=program), accelerator, known)
    return _cost_of(op, counted_machine(accelerator), plan, scheme, layers, seed)


@lru_cache(maxsize=1024)
def _cost_of(
    op: AttentionOp,
    machine: Accelerator,
    plan: AttentionPlan,
    scheme: Scheme,
    layers: _Layers | None,
    seed: int,
) -> tuple[AttentionCost, float]:
    stored = None
    if layers is not None:
        stored = cache_rows(op.plain(), layers.of, layers.kv, layers.chosen)
    places = _places(op, plan)
    total: AttentionCost | None = None
    live = 0.0
    for rows, keys in places:
        share = _ALL_LIVE
        if layers is not None and scheme == "sparqle":
            share = layers.expected(keys).shares(plan.block_rows / op.group)
        some = replace(op, rows=rows, keys=keys)
        header = plan.header(some, machine)
        work = Work.uniform(
            header,
            header.limits(rows, keys - rows),
            *(share.queries, share.live, share.probabilities),
            runs=share.runs,
            rng=np.random.default_rng(seed),
            stored=stored,
        )
        cost = attention_cost(some, machine, plan, work, scheme)
        live += share.live / len(places)
        if rows == op.rows:
            return cost, live
        cost = cost.scaled(op.rows / len(places) / rows)
        total = cost if total is None else total + cost
    assert total is not None
    # What it is does not depend on how it is counted.
    return replace(total, macs=op.macs), live
