"""Tiny models of the library transformers with random weights, written as GGUF files.

The library's own classes say what a model computes. Names of tensors come from the library gguf;
what llama.cpp's converter does to weights besides is done here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from tiny_llama import I2_S, pack_i2_s, unpack_i2_s

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


@dataclass
class TinyTransformers:
    """A model class, its configuration, and how GGUF calls the architecture.

    `keys` are more metadata, below the name of the architecture; `tensors` more tensors; `kinds`
    the types of single weights, `kind` that of the others.
    """

    model: str
    arch: str
    names: gguf.MODEL_ARCH
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    kind: Kind = Kind.Q8_0
    kinds: dict[str, Kind] = field(default_factory=dict)
    permuted: bool = False
    one_more: bool = False

    def build(self) -> Any:
        """The model, with random weights; norms and biases are random too."""
        torch.manual_seed(0)
        settings = getattr(transformers, f"{self.model}Config")(**{**SIZES, **self.config})
        model = getattr(transformers, f"{self.model}ForCausalLM")(settings).float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                random = torch.randn(parameter.shape)
                if parameter.ndim == 1:
                    ones = float("bias" not in name and not self.one_more)
                    parameter.copy_(ones + 0.1 * random)
                else:
                    parameter.copy_(random * parameter.shape[-1] ** -0.5)
        return model

    def write(self, path: Path) -> Any:
        """Write the file; return the model, with the weights that the file has."""
        model = self.build()
        config = model.config
        names = gguf.get_tensor_name_map(self.names, config.num_hidden_layers)
        writer = gguf.GGUFWriter(path, self.arch)
        for key, value in {**self._metadata(config), **self.keys}.items():
            _add(writer, f"{self.arch}.{key}", value)
        weights = dict(model.named_parameters())
        if config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        for name, parameter in weights.items():
            place = names.get_name(_old_name(name), try_suffixes=(".weight", ".bias"))
            assert place is not None, name
            kind = self.kinds.get(place, self.kind) if parameter.ndim == 2 else Kind.F32
            values = self._stored(place, parameter.detach().numpy(), config)
            if kind == I2_S:
                data = pack_i2_s(values)
                writer.add_tensor(place, data.view(np.int8), values.shape, raw_dtype=kind)
                kept = unpack_i2_s(data, values.shape)
            else:
                data = gguf.quants.quantize(values, kind)
                writer.add_tensor(place, data, raw_dtype=kind)
                kept = gguf.quants.dequantize(data, kind).reshape(values.shape)
            with torch.no_grad():
                kept = self._stored(place, kept, config, back=True)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(kept)))
        for name, values in self.tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return model

    def _metadata(self, config: Any) -> dict[str, Any]:
        return {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        }

    def _stored(self, place: str, values: np.ndarray, config: Any, back: bool = False) -> Any:
        """The values as the converter stores them, or from there as they were."""
        if self.one_more and "norm" in place:
            return values + np.float32(-1 if back else 1)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        name = place.split(".")[-2]
        if self.permuted and name in heads:
            halves = (len(values) // heads[name] // 2, 2)
            shape = (heads[name], *(halves if back else halves[::-1]), -1)
            return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        return values


def _old_name(name: str) -> str:
    """What the library gguf knows the tensors of BitNet as."""
    name = name.replace("self_attn.attn_sub_norm", "self_attn.inner_attn_ln")
    return name.replace("mlp.ffn_sub_norm", "mlp.ffn_layernorm")


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[type(value)](key, value)
