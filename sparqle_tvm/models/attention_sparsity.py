"""How many keys attention needs, and how many digits of its operands are zero: measured, stored.

What was measured on SmolLM2-135M lies in ``models/data``; ``benchmarks/attention_table.py`` wrote
it. For another model it is *transferred*: its layers take what was measured at the same depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sparqle_tvm.errors import InvalidArgumentError, ResultFileError
from sparqle_tvm.files import read_json, typed
from sparqle_tvm.numerics.kv_cache import (
    CacheName,
    HeadStorage,
    KvStorage,
    prefers_planes,
    with_factor,
)
from sparqle_tvm.target.cost.attention_choice import ExpectedAttention

_FILE = Path(__file__).parent / "data" / "attention_smollm2.json"


@dataclass(frozen=True)
class MeasuredLayer:
    """Attention of one layer.

    Attributes
    ----------
    live_keys : tuple of tuple of float
        By context and block: share of a block's keys with p > 0 in any row of the key head's
        group, mean over key heads and blocks.
    live_runs : tuple of tuple of float
        The same for the number of runs of such keys side by side, per key of the block.
    p_nonzero, p_msb_sparsity : tuple of float
        By context: share of p > 0, and of p with a zero high digit (p < 16), single rows.
    q_msb_sparsity : float
        Share of zero high digits, window around 0, of queries.
    k_msb_sparsity, v_msb_sparsity : tuple of tuple of float
        The same of keys and values, by factor on the scale and key head.
    """

    live_keys: tuple[tuple[float, ...], ...]
    live_runs: tuple[tuple[float, ...], ...]
    p_nonzero: tuple[float, ...]
    p_msb_sparsity: tuple[float, ...]
    q_msb_sparsity: float
    k_msb_sparsity: tuple[tuple[float, ...], ...]
    v_msb_sparsity: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class MeasuredAttention:
    """Attention of a model on a text.

    Attributes
    ----------
    label, command : str
        Where it comes from, for reports, and what wrote it.
    model_sha256, text : str
        The model's file, and the name of the text.
    query_rows : int
        Query tokens at the end of each context that were looked at.
    contexts, block_tokens : tuple of int
        Keys of a row, and query tokens of a block: places of `MeasuredLayer.live_keys`, rising.
    factors : tuple of float
        On the scales of keys and values, rising from 1: first place of `k_msb_sparsity`.
    layers : tuple of MeasuredLayer
    """

    label: str
    command: str
    model_sha256: str
    text: str
    query_rows: int
    contexts: tuple[int, ...]
    block_tokens: tuple[int, ...]
    factors: tuple[float, ...]
    layers: tuple[MeasuredLayer, ...]

    def __post_init__(self) -> None:
        """Refuse tables of another size, and shares that are none."""
        places = (self.contexts, self.block_tokens, self.factors)
        sizes = (len(self.contexts), len(self.block_tokens))
        if not self.layers or not all(x and list(x) == sorted({*x}) for x in places):
            raise InvalidArgumentError("contexts, blocks, factors and layers have to be there")
        for number, layer in enumerate(self.layers):
            tables = [np.array(t, dtype=float) for t in (layer.live_keys, layer.live_runs)]
            rows = [np.array(t) for t in (layer.p_nonzero, layer.p_msb_sparsity)]
            if any(t.shape != sizes for t in tables) or any(t.shape != sizes[:1] for t in rows):
                raise InvalidArgumentError(f"layer {number} has tables of another size")
            heads = [*layer.k_msb_sparsity, *layer.v_msb_sparsity, (layer.q_msb_sparsity,)]
            if {len(layer.k_msb_sparsity), len(layer.v_msb_sparsity)} != {len(self.factors)}:
                raise InvalidArgumentError(f"layer {number} has not a sparsity for every factor")
            shares = np.concatenate([*(t.ravel() for t in tables), *rows, *heads])
            if not ((shares >= 0) & (shares <= 1)).all():
                raise InvalidArgumentError(f"layer {number} has a share outside [0, 1]")

    def layer_at(self, layer: int, layers: int) -> MeasuredLayer:
        """The measured layer at the depth of layer `layer` of `layers`."""
        last = len(self.layers) - 1
        return self.layers[round(layer * last / max(layers - 1, 1))]

    def live(self, layer: int, layers: int, keys: int, block_tokens: int) -> tuple[float, float]:
        """Live keys of a block, and runs of them, as shares of its keys.

        Between measured contexts and blocks, linear in their logarithms; beyond, what was
        measured last.

        Parameters
        ----------
        layer, layers : int
            Which of how many layers.
        keys : int
            Keys that the block's rows may look at.
        block_tokens : int
            Query tokens of the block.
        """
        found = self.layer_at(layer, layers)
        share, runs = (
            _between(table, self.contexts, self.block_tokens, keys, block_tokens)
            for table in (found.live_keys, found.live_runs)
        )
        return share, min(runs, share)

    def expected(self, chosen: Sequence[int], layers: int, keys: int) -> ExpectedAttention:
        """What is to be expected of attention over so many keys, mean of some of the layers."""
        nearest = int(np.argmin(np.abs(np.log(np.array(self.contexts) / keys))))
        found = [self.layer_at(layer, layers) for layer in chosen]
        live, runs = np.mean(
            [[self.live(i, layers, keys, t) for t in self.block_tokens] for i in chosen], axis=0
        ).T
        return ExpectedAttention(
            queries=1 - float(np.mean([one.q_msb_sparsity for one in found])),
            probabilities=1 - float(np.mean([one.p_msb_sparsity[nearest] for one in found])),
            tokens=tuple(map(float, self.block_tokens)),
            live=tuple(live.tolist()),
            runs=tuple(runs.tolist()),
        )

    def storage(self, layer: int, layers: int, kv_heads: int, head_dim: int) -> KvStorage:
        """Keys and values of a layer in int8: planes for the heads that are smaller so (exact).

        Heads of another model take what was measured of those at the same place.
        """
        found = self.layer_at(layer, layers)
        tables: dict[CacheName, tuple[float, ...]] = {
            "key": found.k_msb_sparsity[0],
            "value": found.v_msb_sparsity[0],
        }
        keys, values = (
            HeadStorage(
                planes="".join(
                    "-p"[prefers_planes(what, head_dim, s)] for s in _spread(heads, kv_heads)
                )
            )
            for what, heads in tables.items()
        )
        return KvStorage(keys, values)

    def stored(
        self, what: CacheName, layer: int, layers: int, kv_heads: int, levels: int
    ) -> list[float]:
        """Shares of stored high digits of keys, or values, by head; between measured levels."""
        found = self.layer_at(layer, layers)
        table = found.k_msb_sparsity if what == "key" else found.v_msb_sparsity
        known = [with_factor(factor).levels for factor in self.factors][::-1]
        columns = zip(*(_spread(row, kv_heads) for row in table), strict=True)
        return [1 - float(np.interp(levels, known, column[::-1])) for column in columns]

    def beyond(self, keys: int) -> bool:
        """Whether so many keys are more than were measured."""
        return keys > self.contexts[-1]


def _spread(heads: tuple[float, ...], count: int) -> list[float]:
    """So many of the heads, evenly."""
    return [heads[i * len(heads) // count] for i in range(count)]


def _between(
    table: tuple[tuple[float, ...], ...],
    contexts: tuple[int, ...],
    blocks: tuple[int, ...],
    keys: int,
    block_tokens: int,
) -> float:
    by_context = [np.interp(np.log(max(block_tokens, 1)), np.log(blocks), row) for row in table]
    return float(np.interp(np.log(max(keys, 1)), np.log(contexts), by_context))


@lru_cache
def measured_attention() -> MeasuredAttention:
    """What was measured on SmolLM2-135M."""
    return load_attention(_FILE)


def load_attention(path: Path) -> MeasuredAttention:
    """Read a file of ``benchmarks/attention_table.py``.

    Raises
    ------
    ResultFileError
        If it is missing, no JSON, or not of that form.
    """
    data = read_json(path, ResultFileError, "a file of benchmarks/attention_table.py")
    return typed(data, MeasuredAttention, path, ResultFileError)


def attention_file() -> Path:
    """Where the package keeps what was measured."""
    return _FILE
