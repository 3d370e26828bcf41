"""Write tiny llama models with random weights as GGUF files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

I2_S: Any = 36
"""A type of bitnet.cpp, which the library gguf does not have."""


def pack_i2_s(values: np.ndarray) -> np.ndarray:
    """Values (N, K) in the order of bitnet.cpp's quantizer on x86."""
    flat = np.sign(np.round(values / np.abs(values).mean())).reshape(-1)
    packed = np.zeros(len(flat) // 4, np.uint8)
    for element, value in enumerate(flat):
        block, place = divmod(element, 128)
        packed[32 * block + place % 32] |= int(value + 1) << (6 - 2 * (place // 32))
    tail = np.zeros(8, np.float32)
    tail[0] = np.abs(values).mean()
    return np.concatenate([packed, tail.view(np.uint8)])


def unpack_i2_s(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What dequantize_row_i2_s of bitnet.cpp's llama.cpp makes of the bytes: 128 values at once."""
    count = int(np.prod(shape))
    scale, found = data[count // 4 : count // 4 + 4].view(np.float32)[0], np.empty(count)
    meaning = np.array([-1, 0, 1, 0])
    for done in range(0, count, 128):
        block = data[done // 4 : done // 4 + 32]
        for quarter in range(4):
            begin = done + 32 * quarter
            found[begin : begin + 32] = meaning[block >> (6 - 2 * quarter) & 3]
    return (found.astype(np.float32) * scale).reshape(shape)


@dataclass
class TinyLlama:
    """A real llama graph, tiny in all sizes. `overrides` replaces metadata; None leaves it out."""

    layers: int = 2
    embed: int = 64
    ffn: int = 96
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 80
    dense_kind: Kind = Kind.Q4_1
    embed_kind: Kind = Kind.Q8_0
    output_kind: Kind | None = None
    kinds: dict[str, Kind] = field(default_factory=dict)
    seed: int = 0
    arch: str = "llama"
    overrides: dict[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    byte_order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE
    tensors_per_file: int = 0

    def metadata(self) -> dict[str, Any]:
        prefix = self.arch
        values = {
            f"{prefix}.block_count": self.layers,
            f"{prefix}.context_length": 128,
            f"{prefix}.embedding_length": self.embed,
            f"{prefix}.feed_forward_length": self.ffn,
            f"{prefix}.attention.head_count": self.heads,
            f"{prefix}.attention.head_count_kv": self.kv_heads,
            f"{prefix}.rope.freq_base": 10000.0,
            f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{prefix}.vocab_size": self.vocab,
            f"{prefix}.rope.dimension_count": self.embed // self.heads,
            **self.tokenizer,
            **self.overrides,
        }
        return {key: value for key, value in values.items() if value is not None}

    def shapes(self) -> dict[str, tuple[tuple[int, ...], Kind]]:
        kv = self.embed // self.heads * self.kv_heads
        tensors: dict[str, tuple[tuple[int, ...], Kind]] = {
            "token_embd.weight": ((self.vocab, self.embed), self.embed_kind),
            "output_norm.weight": ((self.embed,), Kind.F32),
        }
        if self.output_kind is not None:
            tensors["output.weight"] = ((self.vocab, self.embed), self.output_kind)
        block = {
            "attn_norm": (self.embed,),
            "attn_q": (self.embed, self.embed),
            "attn_k": (kv, self.embed),
            "attn_v": (kv, self.embed),
            "attn_output": (self.embed, self.embed),
            "ffn_norm": (self.embed,),
            "ffn_gate": (self.ffn, self.embed),
            "ffn_up": (self.ffn, self.embed),
            "ffn_down": (self.embed, self.ffn),
        }
        for layer in range(self.layers):
            for name, shape in block.items():
                kind = Kind.F32 if len(shape) == 1 else self.dense_kind
                tensors[f"blk.{layer}.{name}.weight"] = (shape, kind)
        for name, kind in self.kinds.items():
            tensors[name] = (tensors[name][0], kind)
        return {name: value for name, value in tensors.items() if name not in self.skip}

    def write(self, path: Path) -> Path:
        rng = np.random.default_rng(self.seed)
        writer = gguf.GGUFWriter(
            path, self.arch, endianess=self.byte_order, split_max_tensors=self.tensors_per_file
        )
        for key, value in self.metadata().items():
            _add(writer, key, value)
        for name, (shape, kind) in self.shapes().items():
            values = rng.standard_normal(shape, dtype=np.float32)
            if len(shape) == 1:
                values = 1 + 0.1 * values
            else:
                values *= shape[-1] ** -0.5
            data = _quantized(values, kind, rng)
            writer.add_tensor(name, data, raw_shape=shape if kind == I2_S else None, raw_dtype=kind)
        for name, values in self.extra.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


# Where the float16 numbers of a block lie, of kinds that the library reads but does not write.
_HALVES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
}


def _quantized(values: np.ndarray, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Values as blocks of a kind; any integers with scales of about the right size, if need be."""
    if kind == I2_S:
        return pack_i2_s(values).view(np.int8)
    if kind not in _HALVES:
        return gguf.quants.quantize(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (len(values), values.shape[1] // block, size)).astype(np.uint8)
    for first in _HALVES[kind]:
        halves = rng.uniform(1e-4, 2e-4, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, first : first + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(len(values), -1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
