"""Published models as shapes: what a cost model has to know of them, without their weights.

Sizes are those of the configurations that the models were published with (`ModelShape.source`);
they stand in ``sparqle_tvm/models/data/shapes.toml``.
Widths of weights are a choice: what such models are commonly quantized to. No embedding is
counted as a dense layer but as the output layer, whose weights have 8 bits in all of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.op import DenseOp

LAYER_TYPES = ("qkv", "o", "gate_up", "down", "output")
"""Encoded tensors of a decoder by what reads them.

``qkv``: queries, keys and values. ``o``: the output of attention. ``gate_up`` and ``down``: the
MLP. ``output``: the layer that makes logits.
"""


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored.

    Attributes
    ----------
    bits : int
        Bits of a weight: 2, 4 or 8.
    group_size : int
        Weights along K that share a scale; 0 = one scale per output channel.
    has_min : bool
        Groups have a minimum besides the scale.
    scale_bytes : int
        Bytes of a scale, and of a minimum: 2 or 4.
    """

    bits: int
    group_size: int = 0
    has_min: bool = False
    scale_bytes: int = 2

    @property
    def bytes_per_weight(self) -> float:
        """Of a weight with its share of the scale and the minimum of its group."""
        of_group = self.scale_bytes * (1 + self.has_min)
        return self.bits / 8 + (of_group / self.group_size if self.group_size else 0)

    def __str__(self) -> str:
        """``int4, groups of 128``."""
        groups = f"groups of {self.group_size}" if self.group_size else "a scale for each output"
        return f"int{self.bits}, {groups}{' with a minimum' if self.has_min else ''}"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a published llama-family decoder.

    Attributes
    ----------
    name : str
        For reports.
    source : str
        Where the sizes come from.
    layers, embed, ffn, heads, kv_heads, head_dim, vocab, head_norms, sub_norms : int or bool
        See `target.cost.vector.TransformerShape`.
    weights, output_weights : WeightFormat
        Of the layers of the blocks, and of the output layer.
    max_positions : int
        Tokens of a sequence that the model was made for, at most; 0 = not known.
    """

    name: str
    source: str
    layers: int
    embed: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    weights: WeightFormat
    output_weights: WeightFormat = WeightFormat(8)
    max_positions: int = 0
    head_norms: bool = False
    sub_norms: bool = False

    def transformer(self, kv_bits: int = 8) -> TransformerShape:
        """Sizes of what is not a dense layer, with keys and values of that width."""
        return TransformerShape.of(self, kv_bits)

    def readers(self, layer_type: str, rows: int, digit_bits: int = 4) -> tuple[DenseOp, ...]:
        """The dense layers that read an encoded tensor of `rows` tokens.

        Parameters
        ----------
        layer_type : str
            One of `LAYER_TYPES`.
        rows : int
            Tokens.
        digit_bits : int
            Width of a digit of the accelerator that computes them.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        outputs, k = {
            "qkv": ({"q": q, "k": kv, "v": kv}, self.embed),
            "o": ({"o": self.embed}, q),
            "gate_up": ({"gate": self.ffn, "up": self.ffn}, self.embed),
            "down": ({"down": self.embed}, self.ffn),
            "output": ({"output": self.vocab}, self.embed),
        }[layer_type]
        form = self.output_weights if layer_type == "output" else self.weights
        return tuple(
            DenseOp(
                *(rows, n, k, form.bits, form.group_size, form.has_min, label),
                digit_bits=digit_bits,
                scale_bytes=form.scale_bytes,
            )
            for label, n in outputs.items()
        )

    def times(self, layer_type: str) -> int:
        """How often a pass has that tensor: once per block, the output layer once."""
        return 1 if layer_type == "output" else self.layers


def _shape(values: dict[str, Any]) -> ModelShape:
    formats = {key: WeightFormat(**v) for key, v in values.items() if isinstance(v, dict)}
    return ModelShape(**{**values, **formats})


_SHAPES = tomllib.loads((Path(__file__).parent / "data/shapes.toml").read_text(encoding="utf-8"))

MODELS: Mapping[str, ModelShape] = MappingProxyType(
    {name: _shape(values) for name, values in _SHAPES.items()}
)
"""The published models by the name that commands take."""
