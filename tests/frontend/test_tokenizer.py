"""The tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
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
@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "gpt-2", "qwen2"])
def test_round_trip(tmp_path: Path, pre: str, text: str) -> None:
    tiny = tokenizer(tmp_path, pre=pre)
    assert tiny.decode(tiny.encode(text)) == text


def test_merges_and_leading_space(tmp_path: Path) -> None:
    assert tokenizer(tmp_path).encode("hello hello") == [ID["hello"], ID["Ġhello"]]


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
def test_digits_one_by_one(tmp_path: Path, pre: str) -> None:
    found = tokenizer(tmp_path, pre=pre).encode("a123")
    assert found == [ID["a"], ID["1"], ID["2"], ID["3"]]


def test_qwen2_takes_a_mark_with_the_word_behind_it(tmp_path: Path) -> None:
    """And an apostrophe with its letters, whatever their case."""
    merges = ["( h", "' S", "S '", "Ċ Ċ", "Ġ Ċ"]
    tokens = [*SPECIAL, *LETTERS, *(merge.replace(" ", "") for merge in merges)]
    types = [3, 3] + [1] * (len(tokens) - 2)
    tiny = tokenizer(tmp_path, pre="qwen2", tokens=tokens, token_type=types, merges=merges)
    assert [tokens[i] for i in tiny.encode("(hS'S \n\n")] == ["(h", "S", "'S", "Ġ", "ĊĊ"]
    assert [tokens[i] for i in tokenizer(tmp_path, pre="gpt-2").encode("(h")] == ["(", "h"]


PROSE = "The quick brown fox jumps over the lazy dog, while the dog dreams of faster foxes. " * 9


@pytest.fixture(scope="module")
def pieces() -> Any:
    """The library sentencepiece, with a BPE vocabulary that it learned itself."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split(". ")),
        model_writer=trained,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())


def sentencepiece_metadata(pieces: Any) -> dict[str, Any]:
    ids = range(pieces.get_piece_size())
    types = [
        2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
        for i in ids
    ]
    return {
        "model": "llama",
        "pre": None,
        "merges": None,
        "tokens": [pieces.id_to_piece(i) for i in ids],
        "scores": [float(pieces.get_score(i)) for i in ids],
        "token_type": types,
        "bos_token_id": pieces.bos_id(),
        "eos_token_id": pieces.eos_id(),
        "add_bos_token": None,
    }


@pytest.mark.parametrize(
    "text",
    ["the fox", "  two  spaces", "naïve ☃ 😀", "dreams, while\n\tfoxes", "", " ", PROSE],
)
def test_sentencepiece_as_its_own_library(tmp_path: Path, pieces: Any, text: str) -> None:
    tiny = tokenizer(tmp_path, **sentencepiece_metadata(pieces))
    ids = tiny.encode(text)
    assert ids == [pieces.bos_id(), *pieces.encode(text)]
    assert tiny.decode(ids[1:]) == text


def test_sentencepiece_without_a_space_in_front(tmp_path: Path, pieces: Any) -> None:
    metadata = {**sentencepiece_metadata(pieces), "add_space_prefix": False}
    tiny = tokenizer(tmp_path, **metadata)
    assert [metadata["tokens"][i] for i in tiny.encode("the")[1:]] != ["▁the"]
    assert tiny.decode(tiny.encode(" the<s>")[1:]) == " the<s>"


def test_sentencepiece_needs_a_score_for_each_token(tmp_path: Path, pieces: Any) -> None:
    metadata = sentencepiece_metadata(pieces)
    with pytest.raises(ModelFileError, match="no score per token"):
        tokenizer(tmp_path, **{**metadata, "scores": metadata["scores"][1:]})


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
        ({"model": "t5"}, "tokenizer 't5' is not supported"),
        (
            {"pre": "deepseek-llm"},
            "pre-tokenizer 'deepseek-llm' is not supported; supported: smollm",
        ),
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
