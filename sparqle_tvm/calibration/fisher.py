"""Squared gradients of a llama's loss at the inputs of its dense layers (Fisher information).

The float model of a GGUF file is built in torch (extra ``torch``), labels are drawn from its own
predictions, and one backward pass per chunk gives the gradient at every input. Expected loss of a
quantization error e is then about half of the sum of ``gradient^2 * e^2``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.loss import CHUNK_TOKENS
from sparqle_tvm.errors import MissingExtraError, UnsupportedModelError
from sparqle_tvm.models.decoder import DecoderConfig, rope_frequencies
from sparqle_tvm.progress import progress_bar

if TYPE_CHECKING:
    from sparqle_tvm.frontend import ImportedModel

_SEED = 0


def require_torch() -> Any:
    """Import torch; MissingExtraError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "gradients need torch: pip install 'sparqle-tvm[torch]', or use the importance of "
            "the weights"
        ) from error
    return torch


def squared_gradients(
    imported: ImportedModel, tokens: npt.NDArray[np.int32], *, progress: bool = True
) -> dict[str, npt.NDArray[np.float64]]:
    """Sum, over tokens, the squared gradients in units of the errors that calibration keeps.

    Parameters
    ----------
    imported : ImportedModel
        A llama from a GGUF file.
    tokens : int32 (T,)
        The text, run in chunks.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    dict of str to float64 (K,)
        By label of the encoding (that of the first dense layer which reads it): the sum of
        ``gradient^2`` times the energy of what the layers' outputs disturb, by which calibration
        divides errors.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    UnsupportedModelError
        If the model is not a plain llama.
    """
    torch = require_torch()
    if not imported.config.is_llama or any(n.endswith(".bias") for n in imported.file.tensors):
        raise UnsupportedModelError(
            "gradients are known of llama models only; use the importance of the weights"
        )
    model = _TorchLlama(torch, imported)
    generator = torch.Generator().manual_seed(_SEED)
    sums: dict[str, npt.NDArray[np.float64]] = {}
    with progress_bar(progress=progress, total=len(tokens), desc="gradients", unit="token") as bar:
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = torch.from_numpy(tokens[start : start + CHUNK_TOKENS].astype(np.int64))
            for label, (gradient, energy) in model.gradients(chunk, generator).items():
                weighted = gradient.double() ** 2 * energy.double()[:, None]
                sums[label] = sums.get(label, 0.0) + weighted.sum(0).numpy()
            bar.update(len(chunk))
    return sums


class _TorchLlama:
    """The float model, which remembers the inputs of its dense layers."""

    def __init__(self, torch: Any, imported: ImportedModel) -> None:
        self.torch, self.config = torch, imported.config
        self._file = imported.file
        c = self.config
        kv = c.kv_heads * c.head_dim
        shapes = {
            "attn_q": (c.embed, c.heads * c.head_dim),
            "attn_k": (c.embed, kv),
            "attn_v": (c.embed, kv),
            "attn_output": (c.heads * c.head_dim, c.embed),
            "ffn_gate": (c.embed, c.ffn),
            "ffn_up": (c.embed, c.ffn),
            "ffn_down": (c.ffn, c.embed),
        }
        self.weights = {
            f"blk.{i}.{name}": self._dense(f"blk.{i}.{name}.weight", *shape)
            for i in range(c.layers)
            for name, shape in shapes.items()
        }
        self.norms = {
            name: self._vector(f"{name}.weight", c.embed)
            for i in range(c.layers)
            for name in (f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm")
        }
        self.embedding = self._dense("token_embd.weight", c.embed, c.vocab)
        self.head = self.embedding
        if not c.tied_head:
            self.head = self._dense("output.weight", c.embed, c.vocab)
        self.norm = self._vector("output_norm.weight", c.embed)
        self.frequencies = torch.from_numpy(rope_frequencies(c, self._rope_factors(c)))
        self.inputs: dict[str, tuple[Any, Any]] = {}

    def _dense(self, name: str, in_features: int, out_features: int) -> Any:
        weight = self._file.weight(name, in_features, out_features).to_float()
        return self.torch.from_numpy(weight.values)

    def _vector(self, name: str, size: int) -> Any:
        return self.torch.from_numpy(self._file.vector(name, size).copy())

    def _rope_factors(self, config: DecoderConfig) -> npt.NDArray[np.float32] | None:
        if "rope_freqs.weight" not in self._file.tensors:
            return None
        return self._file.vector("rope_freqs.weight", config.rope_dim // 2)

    def gradients(self, tokens: Any, generator: Any) -> dict[str, tuple[Any, Any]]:
        """Gradients (T, K) at the inputs, and energy (T,) of the outputs, by label."""
        torch = self.torch
        self.inputs = {}
        logits = self._hidden(tokens) @ self.head
        with torch.no_grad():
            probabilities = torch.softmax(logits, -1)
            labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        return {label: (x.grad, energy) for label, (x, energy) in self.inputs.items()}

    def _apply(self, block: int, x: Any, *names: str, stream: Any = None) -> list[Any]:
        """Outputs of the dense layers that read x (T, K), which is remembered.

        `stream` (T, E) is what the output will be added to.
        """
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        x.retain_grad()
        outputs = [x @ self.weights[f"blk.{block}.{name}"] for name in names]
        with self.torch.no_grad():
            disturbed = outputs if stream is None else [stream + outputs[0]]
            energy = sum((y * y).sum(-1) for y in disturbed)
        self.inputs[f"blk_{block}_{names[0]}"] = (x, energy)
        return outputs

    def _normed(self, x: Any, weight: Any) -> Any:
        mean = (x * x).mean(-1, keepdim=True)
        return x * self.torch.rsqrt(mean + self.config.norm_eps) * weight

    def _rotated(self, x: Any) -> Any:
        """Rotate neighbouring channels of x (T, heads, head_dim)."""
        torch, dim = self.torch, self.config.rope_dim
        angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * self.frequencies
        magnitude = self.config.rope_magnitude
        cos, sin = (angle.cos() * magnitude).float(), (angle.sin() * magnitude).float()
        pairs = x[..., :dim].reshape(*x.shape[:2], dim // 2, 2)
        even, odd = pairs[..., 0], pairs[..., 1]
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
        return torch.cat([turned.reshape(*x.shape[:2], dim), x[..., dim:]], -1)

    def _hidden(self, tokens: Any) -> Any:
        """Final-normed hidden states (T, E)."""
        c, functional = self.config, self.torch.nn.functional
        x = self.embedding[:, tokens].T.contiguous()
        count, shared = len(tokens), c.heads // c.kv_heads
        for i in range(c.layers):
            normed = self._normed(x, self.norms[f"blk.{i}.attn_norm"])
            q, k, v = (
                y.reshape(count, -1, c.head_dim)
                for y in self._apply(i, normed, "attn_q", "attn_k", "attn_v")
            )
            q, k = self._rotated(q), self._rotated(k).repeat_interleave(shared, 1)
            heads = [y.transpose(0, 1) for y in (q, k, v.repeat_interleave(shared, 1))]
            mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
            mixed = mixed.transpose(0, 1).reshape(count, -1)
            x = x + self._apply(i, mixed, "attn_output", stream=x)[0]
            normed = self._normed(x, self.norms[f"blk.{i}.ffn_norm"])
            gate, up = self._apply(i, normed, "ffn_gate", "ffn_up")
            x = x + self._apply(i, functional.silu(gate) * up, "ffn_down", stream=x)[0]
        return self._normed(x, self.norm)
