"""Decoders in ``relax.frontend.nn``: grouped-query attention, RoPE, a gated MLP.

One decoder for llama and those that differ in a few fields of `DecoderConfig`.

The exported module holds its weights as constants and has the functions

- ``create_cache() -> cache``: an empty key/value cache, one per sequence of tokens;
- ``prefill(tokens (1, T) int32, cache) -> (logits (1, 1, V) of the last position, cache)``;
- ``decode(token (1, 1) int32, cache) -> (logits (1, 1, V), cache)``;
- ``hidden(tokens (1, T) int32) -> (1, T, E)``: final-normed hidden states, without a cache;
- ``head(hidden (1, R, E)) -> logits (1, R, V)``;
- ``token_limits() -> int32 (2,)``: V and the context, see `sparqle_tvm.models.token_limits`.

T and R are symbolic. The cache is appended to in place and grows as it must; its length is the
position of the next token, so ``prefill`` may also follow ``prefill`` or ``decode``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.relax import op as R
from tvm.relax.frontend import nn

from sparqle_tvm.dialect.weights import Bounds, declare_weights
from sparqle_tvm.models.quantized import (
    STORED,
    Dense,
    StoredWeight,
    StoredWeights,
    Weight,
    bound_parameter,
)
from sparqle_tvm.models.token_limits import LIMITS_FUNCTION, TokenLimits

FUNCTIONS = ("prefill", "decode", "hidden", "head")
"""Names of the functions of an exported module that hold dense layers."""

CACHE_RESERVE_TOKENS = 256
"""Tokens that a new cache has room for; it doubles when they are used up."""

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors of what the frequencies of pairs are divided by; the first that there is counts.

Longrope has two sets, for texts up to the original context and for longer ones. Which one it is
would change with the length of a text, so longer ones are not offered: `DecoderConfig.context`.
"""

Gate = Literal["silu", "gelu", "relu2"]
"""What the gate of an MLP goes through; gelu is the one made of a tanh, relu2 a square."""

Position: TypeAlias = Any
"""An int, or an integer expression of ``tvm.tirx``: a number of tokens."""


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071): positions are scaled where a pair turns slowly, not where fast.

    Attributes
    ----------
    original_context : number of tokens before the context was made longer
    attention_factor : what cosines and sines are multiplied with, besides ``1 + 0.1 ln scale``
    beta_fast, beta_slow : turns over the original context from which on a pair keeps its own
        frequency, and up to which it is scaled altogether
    """

    original_context: int
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def mixed(
        self, frequencies: NDArray[np.float64], base: float, scale: float
    ) -> NDArray[np.float64]:
        """Frequencies of pairs, with the slow ones divided by `scale`."""
        pairs = len(frequencies)

        def pair_of(turns: float) -> float:
            """The (fractional) pair that turns so often over the original context."""
            return pairs * math.log(self.original_context / (turns * math.tau)) / math.log(base)

        first = max(math.floor(pair_of(self.beta_fast)), 0)
        last = min(math.ceil(pair_of(self.beta_slow)), 2 * pairs - 1)
        ramp = np.clip((np.arange(pairs) - first) / max(last - first, 1e-3), 0, 1)
        return frequencies * (1 - ramp) + frequencies / scale * ramp


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder, and what it has that a llama does not.

    Attributes
    ----------
    layers, embed, ffn, vocab : number of blocks, width, width of the MLP, number of tokens
    heads, kv_heads, head_dim : query heads, key/value heads, channels per head
    rope_dim, rope_base, rope_scale : rotated channels per head, base of the frequencies, and the
        factor that positions are divided by
    norm_eps : epsilon of the RMS norms
    context : number of tokens that the model was trained for
    tied_head : whether the embedding is the output layer too
    yarn : how `rope_scale` is applied, if not to all pairs alike
    rope_factor : what rotations multiply lengths with (longrope), besides what YaRN does
    rope_halves : whether channel i turns with i + rope_dim / 2 instead of its neighbour
    embed_scale : what embeddings are multiplied with
    gate : function of the MLP's gate
    head_norms : whether queries and keys are normalised, each head by itself
    sub_norms : whether the inputs of the last layers of attention and MLP are normalised
    fused : whether query, key and value are one tensor of the file, gate and up another
    """

    layers: int
    embed: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    rope_base: float
    norm_eps: float
    vocab: int
    context: int
    tied_head: bool
    rope_scale: float = 1.0
    yarn: Yarn | None = None
    rope_factor: float = 1.0
    rope_halves: bool = False
    embed_scale: float = 1.0
    gate: Gate = "silu"
    head_norms: bool = False
    sub_norms: bool = False
    fused: bool = False

    @property
    def is_llama(self) -> bool:
        """Whether no field says that it differs from a llama."""
        llama = DecoderConfig.__dataclass_fields__
        names = ("rope_factor", "rope_halves", "embed_scale", "gate", "head_norms", "sub_norms")
        return all(getattr(self, name) == llama[name].default for name in (*names, "fused"))

    @property
    def rope_magnitude(self) -> float:
        """What rotations multiply lengths with: 1 in a plain llama."""
        if self.yarn is None:
            return self.rope_factor
        return self.yarn.attention_factor * (1 + 0.1 * math.log(self.rope_scale))


class WeightSource(Protocol):
    """Where the weights come from, by their GGUF names (as "blk.0.attn_q.weight")."""

    def dense(self, name: str, in_features: int, out_features: int) -> Weight | StoredWeight:
        """Return the weights of a dense layer or an embedding."""
        ...

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """Return a float32 vector, as the weights of a norm."""
        ...

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        ...


@dataclass(frozen=True)
class Rotary:
    """What attention has to know of the positions: T new tokens after `past` old ones.

    Attributes
    ----------
    past : number of tokens in the cache
    cos, sin : float32 of shape (T, 1, rope_dim / 2)
    mask : bool of shape (1, T, past + T), true where a token may look
    """

    past: Position
    cos: relax.Expr
    sin: relax.Expr
    mask: relax.Expr


def _emit(expr: relax.Expr, name: str) -> relax.Var:
    return relax.BlockBuilder.current().emit(expr, name)


def rope_frequencies(
    config: DecoderConfig, factors: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Return the angle per position of each pair of channels: float64, (rope_dim / 2,), radian."""
    exponent = np.arange(0, config.rope_dim, 2, dtype=np.float64) / config.rope_dim
    frequencies = config.rope_base**-exponent
    if config.yarn is not None:
        frequencies = config.yarn.mixed(frequencies, config.rope_base, config.rope_scale)
    else:
        frequencies = frequencies / config.rope_scale
    return frequencies if factors is None else frequencies / factors.astype(np.float64)


def emit_rotary(
    frequencies: NDArray[np.float64], past: Position, count: Position, magnitude: float = 1.0
) -> Rotary:
    """Emit rotation and causal mask of `count` tokens after `past` ones, once per forward pass."""
    total = count if isinstance(past, int) and past == 0 else past + count
    keys = _emit(R.arange(total, dtype="int64"), "key_position")
    if total is count:
        queries = keys
    else:
        queries = R.strided_slice(keys, [0], [past], [total], assume_inbound=True)
        queries = _emit(queries, "query_position")
    # Angles in float64: in float32 they lose precision in step with the position.
    position = R.reshape(R.astype(queries, "float64"), (count, 1, 1))
    per_position = relax.const(frequencies.reshape(1, 1, -1), "float64")
    angle = _emit(R.multiply(position, per_position), "angle")

    def rotated(turn: Callable[[relax.Expr], relax.Expr]) -> relax.Expr:
        turned = turn(angle)
        if magnitude != 1.0:
            turned = R.multiply(turned, relax.const(magnitude, "float64"))
        return R.astype(turned, "float32")

    mask = R.less_equal(R.reshape(keys, (1, 1, total)), R.reshape(queries, (1, count, 1)))
    return Rotary(
        past=past,
        cos=_emit(rotated(R.cos), "rope_cos"),
        sin=_emit(rotated(R.sin), "rope_sin"),
        mask=_emit(mask, "causal_mask"),
    )


def emit_rope(x: relax.Expr, rotary: Rotary, rope_dim: int, *, halves: bool = False) -> relax.Var:
    """Rotate neighbouring channels (0, 1), (2, 3), ... of x (T, heads, head_dim).

    With `halves` (0, d / 2), (1, d / 2 + 1), ... of d = `rope_dim`. GGUF stores the query and key
    weights of a llama permuted for neighbours, those of others as they were trained.
    """
    count, heads, head_dim = x.ty.shape
    rotated = x if rope_dim == int(head_dim) else R.strided_slice(x, [2], [0], [rope_dim])
    apart, axis = ((2, rope_dim // 2), 2) if halves else ((rope_dim // 2, 2), 3)
    pairs = _emit(R.reshape(rotated, (count, heads, *apart)), "rope_pairs")
    even = R.squeeze(R.strided_slice(pairs, [axis], [0], [1]), [axis])
    odd = R.squeeze(R.strided_slice(pairs, [axis], [1], [2]), [axis])
    even, odd = _emit(even, "rope_even"), _emit(odd, "rope_odd")
    new_even = R.subtract(R.multiply(even, rotary.cos), R.multiply(odd, rotary.sin))
    new_odd = R.add(R.multiply(even, rotary.sin), R.multiply(odd, rotary.cos))
    stacked = R.concat([R.expand_dims(new_even, axis), R.expand_dims(new_odd, axis)], axis=axis)
    result = R.reshape(stacked, (count, heads, rope_dim))
    if rope_dim != int(head_dim):
        rest = R.strided_slice(x, [2], [rope_dim], [int(head_dim)])
        result = R.concat([result, rest], axis=2)
    return _emit(result, "rope")


def emit_attention(
    q: relax.Expr, k: relax.Expr, v: relax.Expr, mask: relax.Expr, label: str
) -> relax.Var:
    """Emit causal grouped-query attention in float32, without repeating keys or values.

    Parameters
    ----------
    q : (T, heads, head_dim), k, v : (total, kv_heads, head_dim), all float32
    mask : bool of shape (1, T, total)
    label : name of the product of probabilities and values

    Returns
    -------
    (1, T, heads * head_dim) float32
    """
    count, heads, head_dim = q.ty.shape[0], int(q.ty.shape[1]), int(q.ty.shape[2])
    total, kv_heads = k.ty.shape[0], int(k.ty.shape[1])
    rows = heads // kv_heads * count
    scaled = R.multiply(q, relax.const(1.0 / math.sqrt(head_dim), "float32"))
    queries = R.reshape(R.permute_dims(scaled, [1, 0, 2]), (kv_heads, rows, head_dim))
    scores = _emit(R.matmul(queries, R.permute_dims(k, [1, 2, 0])), "attn_scores")
    scores = R.reshape(scores, (heads, count, total))
    hidden = relax.const(np.finfo(np.float32).min, "float32")
    probs = _emit(R.nn.softmax(R.where(mask, scores, hidden), axis=-1), "attn_probs")
    probs = R.reshape(probs, (kv_heads, rows, total))
    mixed = _emit(R.matmul(probs, R.permute_dims(v, [1, 0, 2])), label)
    mixed = R.permute_dims(R.reshape(mixed, (heads, count, head_dim)), [1, 0, 2])
    return _emit(R.reshape(mixed, (1, count, heads * head_dim)), "attn_out")


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32."""

    def __init__(self, weight: NDArray[np.float32], eps: float) -> None:
        """Hold the weights (E,)."""
        self.weight = bound_parameter(weight)
        self.eps = eps

    def forward(self, x: relax.Expr) -> relax.Var:
        """Normalise x (1, T, E)."""
        return _emit(R.nn.rms_norm(x, self.weight._expr, axes=[-1], epsilon=self.eps), "norm")


def _emit_gate(gate: Gate, x: relax.Expr) -> relax.Expr:
    if gate == "relu2":
        positive = _emit(R.nn.relu(x), "relu")
        return R.multiply(positive, positive)
    return R.nn.silu(x) if gate == "silu" else R.nn.gelu_tanh(x)


class _BlockSource:
    """The tensors of one block."""

    def __init__(self, config: DecoderConfig, layer: int, source: WeightSource) -> None:
        self.config, self.layer, self._source = config, layer, source

    def dense(self, name: str, in_features: int, out_features: int) -> Dense:
        """A dense layer, with a bias if there is one."""
        place = f"blk.{self.layer}.{name}"
        weight = self._source.dense(f"{place}.weight", in_features, out_features)
        return self._layer(name, weight, self._bias(name, out_features))

    def cut(self, whole: str, names: dict[str, int]) -> list[Dense]:
        """Dense layers with so many outputs each, which `fused` models have as one tensor."""
        config = self.config
        if not config.fused:
            return [self.dense(name, config.embed, size) for name, size in names.items()]
        total, layers, begin = sum(names.values()), [], 0
        weight = self._source.dense(f"blk.{self.layer}.{whole}.weight", config.embed, total)
        bias = self._bias(whole, total)
        for name, size in names.items():
            part = slice(begin, begin + size)
            own = None if bias is None else bias[part]
            layers.append(self._layer(name, weight.outputs(part), own))
            begin += size
        return layers

    def norm(self, name: str, size: int) -> RMSNorm:
        """The norm of that name."""
        weight = self._source.vector(f"blk.{self.layer}.{name}.weight", size)
        return RMSNorm(weight, self.config.norm_eps)

    def _bias(self, name: str, size: int) -> NDArray[np.float32] | None:
        place = f"blk.{self.layer}.{name}.bias"
        return self._source.vector(place, size) if place in self._source else None

    def _layer(
        self, name: str, weight: Weight | StoredWeight, bias: NDArray[np.float32] | None
    ) -> Dense:
        return Dense(weight, f"blk_{self.layer}_{name}", bias)


class Attention(nn.Module):
    """Self-attention of one block, with its two caches."""

    def __init__(self, source: _BlockSource) -> None:
        """Take the weights of a layer from `source`."""
        self.config = config = source.config
        self.label = f"blk_{source.layer}_attn"
        q_features = config.heads * config.head_dim
        kv_shape = [config.kv_heads, config.head_dim]
        kv_features = config.kv_heads * config.head_dim
        inputs = {"attn_q": q_features, "attn_k": kv_features, "attn_v": kv_features}
        self.q, self.k, self.v = source.cut("attn_qkv", inputs)
        self.out = source.dense("attn_output", q_features, config.embed)
        if config.head_norms:
            self.q_norm = source.norm("attn_q_norm", config.head_dim)
            self.k_norm = source.norm("attn_k_norm", config.head_dim)
        if config.sub_norms:
            self.sub_norm = source.norm("attn_sub_norm", q_features)
        self.k_cache = nn.KVCache(CACHE_RESERVE_TOKENS, kv_shape, dtype="float32")
        self.v_cache = nn.KVCache(CACHE_RESERVE_TOKENS, kv_shape, dtype="float32")

    def forward(self, x: relax.Expr, rotary: Rotary, *, cached: bool) -> relax.Var:
        """Attend: x (1, T, E) to (1, T, E); `cached` appends to the caches and looks into them."""
        config, count = self.config, x.ty.shape[1]
        kv_shape = (count, config.kv_heads, config.head_dim)
        q = _emit(R.reshape(self.q(x), (count, config.heads, config.head_dim)), "q_heads")
        k = _emit(R.reshape(self.k(x), kv_shape), "k_heads")
        if config.head_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (
            emit_rope(heads, rotary, config.rope_dim, halves=config.rope_halves) for heads in (q, k)
        )
        v = _emit(R.reshape(self.v(x), kv_shape), "v_heads")
        if cached:
            self.k_cache.append(nn.Tensor(_expr=k))
            self.v_cache.append(nn.Tensor(_expr=v))
            total = rotary.past + count
            k, v = self.k_cache.view(total)._expr, self.v_cache.view(total)._expr
        mixed = emit_attention(q, k, v, rotary.mask, self.label)
        return self.out(self.sub_norm(mixed) if config.sub_norms else mixed)


class Block(nn.Module):
    """One block: attention and a gated MLP, each behind a norm, added to the residual stream."""

    def __init__(self, config: DecoderConfig, layer: int, source: WeightSource) -> None:
        """Take the weights of a layer from `source`."""
        block = _BlockSource(config, layer, source)
        self.config = config
        self.attn_norm = block.norm("attn_norm", config.embed)
        self.attn = Attention(block)
        self.ffn_norm = block.norm("ffn_norm", config.embed)
        self.gate, self.up = block.cut("ffn_up", {"ffn_gate": config.ffn, "ffn_up": config.ffn})
        self.down = block.dense("ffn_down", config.ffn, config.embed)
        if config.sub_norms:
            self.sub_norm = block.norm("ffn_sub_norm", config.ffn)

    def forward(self, x: relax.Expr, rotary: Rotary, *, cached: bool) -> relax.Var:
        """Apply the block to x (1, T, E)."""
        x = _emit(R.add(x, self.attn(self.attn_norm(x), rotary, cached=cached)), "residual")
        normed = self.ffn_norm(x)
        gate = _emit_gate(self.config.gate, self.gate(normed))
        gated = _emit(R.multiply(gate, self.up(normed)), "gated")
        if self.config.sub_norms:
            gated = self.sub_norm(gated)
        return _emit(R.add(x, self.down(gated)), "residual")


class Decoder(nn.Module):
    """A decoder, its weights taken from `source` one after another."""

    def __init__(self, config: DecoderConfig, source: WeightSource) -> None:
        """Take all weights from `source`."""
        self.config = config
        embedding = Dense(
            source.dense("token_embd.weight", config.embed, config.vocab), "token_embd"
        )
        self.output = embedding
        if not config.tied_head:
            self.embedding = embedding
            self.output = Dense(source.dense("output.weight", config.embed, config.vocab), "output")
        self.output.label = "output"
        self.blocks = nn.ModuleList([Block(config, i, source) for i in range(config.layers)])
        self.norm = RMSNorm(source.vector("output_norm.weight", config.embed), config.norm_eps)
        factors = None
        found = [name for name in ROPE_FACTORS if name in source]
        if found:
            factors, *_ = [source.vector(name, config.rope_dim // 2) for name in found]
        self.frequencies = rope_frequencies(config, factors)
        self.magnitude = config.rope_magnitude

    def _hidden(self, tokens: relax.Expr, past: Position, *, cached: bool) -> relax.Var:
        embedding = self.output if self.config.tied_head else self.embedding
        x = embedding.embed(tokens)
        if self.config.embed_scale != 1.0:
            x = _emit(R.multiply(x, relax.const(self.config.embed_scale, "float32")), "embedding")
        rotary = emit_rotary(self.frequencies, past, tokens.ty.shape[1], self.magnitude)
        for block in self.blocks:
            x = block(x, rotary, cached=cached)
        return self.norm(x)

    def _past(self) -> tirx.Var:
        """Read the number of cached tokens, as a symbolic variable, from the first cache."""
        builder, cache = relax.BlockBuilder.current(), self.blocks[0].attn.k_cache
        unknown = relax.TensorType(dtype="float32", ndim=3)
        view = builder.emit(
            R.call_pure_packed("vm.builtin.attention_kv_cache_view", cache.cache, ty_args=unknown),
            "cached_keys",
        )
        past = tirx.Var("past", "int64")
        builder.match_cast(view, relax.TensorType((past, *cache.unit_shape), "float32"))
        return past

    def prefill(self, tokens: nn.Tensor) -> nn.Tensor:
        """Append the tokens to the cache; return the logits of the last one."""
        x = self._hidden(tokens._expr, self._past(), cached=True)
        count = x.ty.shape[1]
        if not isinstance(count, tirx.IntImm):
            x = R.strided_slice(x, [1], [count - 1], [count], assume_inbound=True)
        return nn.Tensor(_expr=self.output(_emit(x, "last_hidden")))

    def decode(self, tokens: nn.Tensor) -> nn.Tensor:
        """Append one token to the cache; return its logits."""
        return self.prefill(tokens)

    def hidden(self, tokens: nn.Tensor) -> nn.Tensor:
        """Return the final-normed hidden states of all tokens."""
        return nn.Tensor(_expr=self._hidden(tokens._expr, 0, cached=False))

    def head(self, hidden: nn.Tensor) -> nn.Tensor:
        """Return the logits of hidden states."""
        return nn.Tensor(_expr=self.output(hidden._expr))


def cache_function(config: DecoderConfig) -> relax.Function:
    """Return ``create_cache``: the key and value caches of each block, in the model's order.

    ``nn.KVCache`` calls its creation pure, which would let common-subexpression elimination
    make one cache of them all. It is not: each call makes an object that is written to.
    """
    builder = relax.BlockBuilder()
    shape = relax.ShapeExpr([CACHE_RESERVE_TOKENS, config.kv_heads, config.head_dim])
    create = relax.ExternFunc("vm.builtin.attention_kv_cache_create")
    with builder.function("create_cache", [], pure=False):
        zeros = builder.emit(R.zeros(shape, "float32"), "zeros")
        arguments = [zeros, shape, relax.prim_value(0)]
        caches = [
            builder.emit(relax.Call(create, arguments, ty_args=[relax.AnyType()]), f"{part}_cache")
            for _ in range(config.layers)
            for part in ("k", "v")
        ]
        builder.emit_func_output(relax.Tuple(caches))
    return builder.finalize()["create_cache"]


def export_decoder(
    config: DecoderConfig, source: WeightSource, weights: StoredWeights | None = None
) -> tvm.IRModule:
    """Build the module described above, with the weights bound as constants.

    All functions share one copy of each constant. Stored weights stay parameters, which functions
    take behind all others, and `weights` gets to know them.

    Raises
    ------
    SparqleError
        Whatever `source` raises for weights it does not have.
    """
    model = Decoder(config, source)
    tokens = nn.spec.Tensor([1, "seq_len"], "int32")
    states = nn.spec.Tensor([1, "rows", config.embed], "float32")
    specs = {
        "prefill": ("packed", {"tokens": tokens}),
        "decode": ("packed", {"tokens": nn.spec.Tensor([1, 1], "int32")}),
        "hidden": ("none", {"tokens": tokens}),
        "head": ("none", {"hidden": states}),
    }
    constants: dict[str, relax.Constant] = {}
    functions: dict[str, relax.Function] = {}
    bounds: dict[str, Bounds] = {}
    for name, (effects, arguments) in specs.items():
        modes = {"param_mode": "plain", "effect_mode": effects}
        # One export per function: names are unique per export, and layers keep theirs.
        mod, parameters = model.export_tvm(spec={name: {**arguments, "$": modes}})
        for key, parameter in parameters if not functions else []:
            if parameter.data is not None:
                constants[key] = relax.const(parameter.data)
            elif weights is not None:
                weights.add(key, *parameter.attrs[STORED])
                bounds[key] = weights.bounds(key)
        function = relax.transform.BindParams(name, constants)(mod)[name]
        functions[name] = declare_weights(function, bounds) if bounds else function
    others = {
        "create_cache": cache_function(config),
        LIMITS_FUNCTION: TokenLimits(config.vocab, config.context).function(),
    }
    return tvm.IRModule({**functions, **others})
