"""An independent llama in PyTorch, float32, straight from the GGUF file.

It undoes the permutation of the query and key weights and rotates halves of a head, as the models
were trained, where the import leaves the weights as they are and rotates neighbours.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from torch.nn import functional as F


class TorchLlama:
    """Logits of all positions of a sequence.

    `qmax` quantizes the input of dense layers with integer weights to [-qmax, qmax] per token.
    """

    def __init__(self, path: Path, qmax: int | None = None) -> None:
        self.qmax = qmax
        reader = gguf.GGUFReader(path)
        self.weights = {
            tensor.name: torch.from_numpy(
                gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            )
            for tensor in reader.tensors
        }
        kinds = gguf.GGMLQuantizationType
        floats = (kinds.F16, kinds.F32, kinds.BF16)
        self.floats = {t.name for t in reader.tensors if t.tensor_type in floats}

        def value(key: str):
            return reader.fields[f"llama.{key}"].contents()

        self.layers = value("block_count")
        self.heads = value("attention.head_count")
        self.kv_heads = value("attention.head_count_kv")
        self.eps = value("attention.layer_norm_rms_epsilon")
        self.base = value("rope.freq_base")
        self.scale = 1.0
        if "llama.rope.scaling.factor" in reader.fields:
            self.scale = value("rope.scaling.factor")
        self.rope_dim = value("rope.dimension_count")
        self.head_dim = value("embedding_length") // self.heads

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean = x.double().pow(2).mean(-1, keepdim=True)
        return (x.double() * torch.rsqrt(mean + self.eps)).float() * self.weights[f"{name}.weight"]

    def _rope(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate x (heads, T, head_dim), whose first rope_dim channels are permuted."""
        x, rest = x[..., : self.rope_dim], x[..., self.rope_dim :]
        half = self.rope_dim // 2
        x = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
        inverse = 1.0 / self.base ** (torch.arange(half, dtype=torch.float64) * 2 / self.rope_dim)
        if "rope_freqs.weight" in self.weights:
            inverse = inverse / self.weights["rope_freqs.weight"]
        positions = torch.arange(x.shape[1], dtype=torch.float64) / self.scale
        angle = torch.outer(positions, inverse)
        cos, sin = (f(torch.cat([angle, angle], dim=-1)).float() for f in (torch.cos, torch.sin))
        rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return torch.cat([x * cos + rotated * sin, rest], dim=-1)

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(x.shape[0], heads, self.head_dim).transpose(0, 1)

    def _dense(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if self.qmax is not None and f"{name}.weight" not in self.floats:
            scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / self.qmax
            x = torch.round(x / scale) * scale
        return x @ self.weights[f"{name}.weight"].T

    def _block(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        def dense(name: str, y: torch.Tensor) -> torch.Tensor:
            return self._dense(y, f"blk.{layer}.{name}")

        normed = self._norm(x, f"blk.{layer}.attn_norm")
        q = self._rope(self._split(dense("attn_q", normed), self.heads))
        k = self._rope(self._split(dense("attn_k", normed), self.kv_heads))
        v = self._split(dense("attn_v", normed), self.kv_heads)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=0) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        x = x + dense("attn_output", mixed.transpose(0, 1).reshape(x.shape[0], -1))
        normed = self._norm(x, f"blk.{layer}.ffn_norm")
        gated = F.silu(dense("ffn_gate", normed)) * dense("ffn_up", normed)
        return x + dense("ffn_down", gated)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Return the logits (T, V) of tokens (T,)."""
        with torch.no_grad():
            x = self.weights["token_embd.weight"][torch.from_numpy(tokens).long()]
            for layer in range(self.layers):
                x = self._block(x, layer)
            head = "output" if "output.weight" in self.weights else "token_embd"
            return self._dense(self._norm(x, "output_norm"), head).numpy()
