"""The tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import TinyLlama
from tokenizers import pre_tokenizers

from sparqle_tvm.errors import ModelFileError, UnsupportedModelError
from sparqle_tvm.frontend.gguf_file import GGUFFile
from sparqle_tvm.frontend.tokenizer import Tokenizer, tokenizer_from_gguf
from sparqle_tvm.models.builtin import fetch_builtin

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "12 3"]
SPECIAL = ["<|begin|>", "<|end|>"]
TOKENS = [*SPECIAL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
ID = {token: index for index, token in enumerate(TOKENS)}
METADATA: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": False,
}


def tokenizer(folder: Path, **changes: Any) -> Tokenizer:
    """Return the tokenizer of a file with changed metadata; None leaves an entry out."""
    changed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {k: v for k, v in (METADATA | changed).items() if v is not None}
    tiny = replace(TinyLlama(layers=1), tokenizer=metadata)
    return tokenizer_from_gguf(GGUFFile(tiny.write(folder / "model.gguf")))


@pytest.mark.parametrize(
    "text",
    ["hello hello", "  two  spaces\n\ttabs ", "naïve ☃ 😀", "x = 123456;", "", "<|end|>hello"],
)
@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "gpt-2"])
def test_round_trip(tmp_path: Path, pre: str, text: str) -> None:
    tiny = tokenizer(tmp_path, pre=pre)
    assert tiny.decode(tiny.encode(text)) == text


def test_merges_and_leading_space(tmp_path: Path) -> None:
    assert tokenizer(tmp_path).encode("hello hello") == [ID["hello"], ID["Ġhello"]]


def test_smollm_splits_digits_one_by_one(tmp_path: Path) -> None:
    assert tokenizer(tmp_path).encode("a123") == [ID["a"], ID["1"], ID["2"], ID["3"]]


@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2"])
def test_others_merge_digits(tmp_path: Path, pre: str) -> None:
    assert tokenizer(tmp_path, pre=pre).encode("a123") == [ID["a"], ID["123"]]


def test_llama_bpe_splits_numbers_into_threes(tmp_path: Path) -> None:
    ids = tokenizer(tmp_path, pre="llama-bpe").encode("123123")
    assert ids == [ID["123"], ID["123"]]


def test_control_tokens_are_one_token(tmp_path: Path) -> None:
    assert tokenizer(tmp_path).encode("hello<|end|>") == [ID["hello"], 1]


def test_begin_token(tmp_path: Path) -> None:
    assert tokenizer(tmp_path, add_bos_token=True).encode("hello") == [0, ID["hello"]]
    assert tokenizer(tmp_path, add_bos_token=None).encode("hello") == [ID["hello"]]
    llama = tokenizer(tmp_path, pre="llama-bpe", add_bos_token=None)
    assert llama.encode("hello") == [0, ID["hello"]]


def test_attributes(tmp_path: Path) -> None:
    tiny = tokenizer(tmp_path)
    assert (tiny.vocab, tiny.bos, tiny.eos, tiny.add_bos) == (len(TOKENS), 0, 1, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer 'llama' is not supported"),
        ({"pre": "qwen2"}, "pre-tokenizer 'qwen2' is not supported; supported: smollm"),
    ],
)
def test_unsupported(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        tokenizer(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": None}, r"'tokenizer\.ggml\.pre' is missing"),
        ({"tokens": None}, r"'tokenizer\.ggml\.tokens' is missing"),
        ({"merges": None}, r"'tokenizer\.ggml\.merges' is missing"),
        ({"merges": [1, 2]}, "not a list of strings"),
        ({"merges": ["h ☃"]}, "merges are damaged"),
        ({"merges": ["he"]}, "merges are damaged"),
        ({"token_type": [1, 1]}, "2 token types for"),
        ({"bos_token_id": "zero"}, "is str, not int"),
    ],
)
def test_damaged(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        tokenizer(tmp_path, **changes)


@pytest.mark.slow
def test_builtin_model() -> None:
    """Control tokens are one id each, digits too; text comes back."""
    smollm = tokenizer_from_gguf(GGUFFile(fetch_builtin()))
    assert smollm.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert smollm.encode("Hello world 1234") == [19556, 905, 216, 33, 34, 35, 36]
    text = "def f(x):\n    return x**2  # naïve ☃\n"
    assert smollm.decode(smollm.encode(text)) == text
    assert (smollm.vocab, smollm.bos, smollm.eos, smollm.add_bos) == (49152, 1, 2, False)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("number", [len(TOKENS), 2**31, 2**32 - 1])
def test_token_ids_beyond_the_vocabulary(tmp_path: Path, key: str, number: int) -> None:
    with pytest.raises(ModelFileError, match=f"'tokenizer.ggml.{key}' is {number}, there are only"):
        tokenizer(tmp_path, **{key: number})
