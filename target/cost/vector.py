"""Everything of a transformer that is not a dense layer, by a simple formula.

The vector unit spends ``macs / vector_macs_per_cycle + operations / vector_lanes`` cycles; beside
it, its tensors pass the DRAM once: float tensors at `Accelerator.float_bytes` per element, keys and
values at `TransformerShape.kv_bits`. The slower of the two is the time. The keys and values of a
head stay on chip while all its queries pass, scores never leave the chip, and what is quantized
for a dense layer is written by the encode step (`analytical.EncodeCost`), not here. A residual and
the norm behind it are one pass over the stream: what was added is read and written once, and the
norm of it goes to the encode step. What passes the DRAM also passes the activation buffer: every
byte is written and read there once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import Size
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import ENCODE_OPS, QUANTIZE_OPS, Bound
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.limits import Limits, divide
from sparqle_tvm.target.isa.attention_header import FACTOR_BYTES, SCALE_BYTES

# Vector operations per element. Softmax: scale, maximum, subtract, exp, add, divide. RMS norm:
# square, add, scale, weight. RoPE: two products and a sum. SwiGLU: exp, add, divide, two products.
SOFTMAX_OPS = 6
NORM_OPS = 4
ROPE_OPS = 3
SWIGLU_OPS = 5
RESIDUAL_OPS = 1


KV_BITS = (4, 8, 16)
"""Widths of a cached key or value: integers of 4 or 8 bits, or float16."""


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a decoder.

    Attributes
    ----------
    layers, embed, ffn : int
        Blocks, width of the residual stream, inner width of the MLP.
    heads, kv_heads, head_dim : int
        Query heads, key/value heads, channels per head.
    vocab : int
        Number of tokens.
    kv_bits : int
        Bits of a key or value element in the cache, one of `KV_BITS`.
    head_norms, sub_norms : bool
        Whether each head's query and key is normalised, and the inputs of the last layers of
        attention and MLP.
    """

    layers: Size
    embed: Size
    ffn: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    vocab: Size
    kv_bits: int = 8
    head_norms: bool = False
    sub_norms: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        for name, value in vars(self).items():
            if not isinstance(value, bool) and value < 1:
                raise InvalidArgumentError(f"transformer shape: {name} = {value} must be positive")
        if self.kv_bits not in KV_BITS:
            raise InvalidArgumentError(
                f"kv_bits = {self.kv_bits} must be one of {', '.join(map(str, KV_BITS))}: integers "
                "of 4 or 8 bits, or float16"
            )

    @classmethod
    def of(cls, described: Any, kv_bits: int = 8) -> TransformerShape:
        """The sizes of whatever has them all as attributes, as a model's configuration has."""
        sizes = {f.name: getattr(described, f.name) for f in fields(cls) if f.name != "kv_bits"}
        return cls(**sizes, kv_bits=kv_bits)


@dataclass(frozen=True)
class CacheToken:
    """What is written of a token into the cache of a layer, mean of the layers.

    Attributes
    ----------
    bytes : float
        Of its keys and values with their pointers, without their scales.
    encoded_elements : float
        Elements that are cut into digits.
    encoded_queries : float
        Share of the layers whose queries are, too: not those whose attention is left dense.
    """

    bytes: float
    encoded_elements: float
    encoded_queries: float = 1.0


@dataclass(frozen=True)
class VectorCost:
    """Cost of one kind of vector-unit work, over all layers.

    Attributes
    ----------
    label : str
        What is done.
    macs, operations : int
        Multiply-accumulates and elementwise operations.
    read_bytes, write_bytes : int
        DRAM traffic.
    cache_bytes : int
        Of it keys and values of the cache.
    vector_cycles, dma_cycles : int
        Cycles of the vector unit and of its transfers, beside each other.
    """

    label: str
    macs: int
    operations: int
    read_bytes: int
    write_bytes: int
    cache_bytes: int
    vector_cycles: int
    dma_cycles: int

    @property
    def dram_bytes(self) -> int:
        """All bytes read and written."""
        return self.read_bytes + self.write_bytes

    @property
    def total_cycles(self) -> int:
        """Time: the slower of vector unit and transfers."""
        return max(self.vector_cycles, self.dma_cycles)

    @property
    def bound(self) -> Bound:
        """What limits it."""
        return "compute" if self.vector_cycles >= self.dma_cycles else "memory"

    @property
    def limits(self) -> Limits:
        """What the time is limited by, see `limits`."""
        cache = self.dma_cycles * self.cache_bytes / (self.dram_bytes or 1)
        channel = {"activations": self.dma_cycles - cache, "kv_cache": cache}
        return divide(self.total_cycles, [{"vector": float(self.vector_cycles)}, channel])

    @property
    def events(self) -> Events:
        """What costs energy."""
        return Events(
            cycles=self.total_cycles,
            activation_read_bytes=self.dram_bytes,
            activation_write_bytes=self.dram_bytes,
            dram_read_bytes=self.read_bytes,
            dram_write_bytes=self.write_bytes,
            vector_operations=self.operations,
            vector_macs=self.macs,
        )


def attended_pairs(tokens: int, past: int) -> int:
    """Pairs of a query and a key that it may look at: `tokens` new ones after `past` old ones."""
    return tokens * past + tokens * (tokens + 1) // 2


def vector_costs(
    shape: TransformerShape,
    tokens: int,
    past: int,
    accelerator: Accelerator,
    batch: int = 1,
    *,
    attention: bool = True,
    scheme: Scheme = "dense",
    stored: CacheToken | None = None,
) -> tuple[VectorCost, ...]:
    """Cost of all vector-unit work of one pass; only last tokens go to the output layer.

    Parameters
    ----------
    shape : TransformerShape
        The model.
    tokens : int
        Tokens of the pass per sequence: all of the text in prefill, 1 in decode.
    past : int
        Tokens in the cache of a sequence before.
    accelerator : Accelerator
        The vector unit and the memory.
    batch : int
        Sequences; each has keys and values of its own.
    attention : bool
        Whether the vector unit computes attention, in floats. If not, the array does, in integers
        (`cost.attention`): queries, keys and values are quantized when they are rotated.
    scheme : {"sparqle", "dense", "native", "a4"}
        How queries for the array are stored.
    stored : CacheToken, optional
        How the keys and values of a token are written for the array; by default as int8.

    Raises
    ------
    InvalidArgumentError
        If there is no token or no sequence.
    """
    if tokens < 1 or past < 0 or batch < 1:
        raise InvalidArgumentError(
            f"a pass of {tokens} tokens after {past} in {batch} sequences cannot be counted"
        )
    layers, f = shape.layers, accelerator.float_bytes
    rows = tokens * batch
    stream = rows * shape.embed
    queries = rows * shape.heads * shape.head_dim
    keys = rows * shape.kv_heads * shape.head_dim
    cached_elements = batch * (past + tokens) * shape.kv_heads * shape.head_dim
    scores = batch * attended_pairs(tokens, past) * shape.heads

    def cache_bytes(elements: int) -> int:
        return math.ceil(elements * shape.kv_bits / 8)

    def cost(
        label: str,
        times: int,
        *,
        macs: int = 0,
        ops: int = 0,
        reads: int = 0,
        writes: int = 0,
        cached: int = 0,
    ) -> VectorCost:
        cycles = macs / accelerator.vector_macs_per_cycle + ops / accelerator.vector_lanes
        dma = (reads + writes) / accelerator.dram_bytes_per_cycle
        return VectorCost(
            label=label,
            macs=times * macs,
            operations=times * ops,
            read_bytes=times * reads,
            write_bytes=times * writes,
            cache_bytes=times * cached,
            vector_cycles=times * math.ceil(cycles),
            dma_cycles=times * math.ceil(dma),
        )

    rotated = (queries + keys) * (ROPE_OPS + NORM_OPS * shape.head_norms)
    written = queries * f + 2 * cache_bytes(keys)
    cached = 2 * cache_bytes(keys)
    if not attention:
        encoded = queries if scheme == "sparqle" else 0
        if stored is not None:
            encoded = round(encoded * stored.encoded_queries)
            encoded += round(rows * stored.encoded_elements)
            cached = math.ceil(rows * stored.bytes)
        rotated += QUANTIZE_OPS * (queries + 2 * keys) + ENCODE_OPS * encoded
        cached += SCALE_BYTES * rows * shape.kv_heads
        written = queries + FACTOR_BYTES * rows * shape.heads + cached
    # Of the outputs of attention, and of those of the gated MLP.
    sub_normed = (queries + rows * shape.ffn) * NORM_OPS * shape.sub_norms
    mixing = (
        cost(
            "attention",
            layers,
            macs=2 * scores * shape.head_dim,
            ops=scores * SOFTMAX_OPS,
            reads=queries * f + 2 * cache_bytes(cached_elements),
            cached=2 * cache_bytes(cached_elements),
        ),
    )
    return (
        cost("embedding", 1, reads=stream * f, writes=stream * f),
        cost(
            "rope and cache",
            layers,
            ops=rotated,
            reads=(queries + 2 * keys) * f,
            writes=written,
            cached=cached,
        ),
        *(mixing if attention else ()),
        cost(
            "swiglu",
            layers,
            ops=rows * shape.ffn * SWIGLU_OPS + sub_normed,
            reads=2 * rows * shape.ffn * f,
        ),
        cost(
            "norms and residuals",
            2 * layers,
            ops=stream * (NORM_OPS + RESIDUAL_OPS),
            reads=2 * stream * f,
            writes=stream * f,
        ),
        cost("final norm", 1, ops=batch * shape.embed * NORM_OPS),
    )
