"""A tiny model with a tokenizer, and a text, as files: what the command line takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_llama import TinyLlama
from tokenizers.pre_tokenizers import ByteLevel

PROSE = "The quick brown fox jumps over the lazy dog, while the dog dreams of faster foxes. " * 3


def byte_tokenizer() -> dict[str, Any]:
    """Metadata of a BPE tokenizer with a token per byte and a single merge."""
    tokens = [*sorted(ByteLevel.alphabet()), "th"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.eos_token_id": 0,
    }


def sentencepiece_tokenizer() -> dict[str, Any]:
    """Metadata of a sentencepiece tokenizer with a token per byte, and one more."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "t", "tt"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 260,
        "tokenizer.ggml.token_type": [2, 3, *[6] * 256, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
    }


def write_tiny_model(folder: Path, **options: Any) -> Path:
    """Write a model of two blocks that knows bytes; `options` go to `TinyLlama`."""
    model = TinyLlama(**{"vocab": 257, "tokenizer": byte_tokenizer(), **options})
    return model.write(folder / "tiny.gguf")


def write_prose(folder: Path) -> Path:
    """Write a text of about 250 tokens."""
    path = folder / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path
