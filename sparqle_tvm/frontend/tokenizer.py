"""The tokenizer of a GGUF file: byte-level BPE, through the library ``tokenizers``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from sparqle_tvm.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparqle_tvm.frontend.gguf_file import GGUFFile

_CONTROL, _USER_DEFINED = 3, 4
"""Values of "tokenizer.ggml.token_type" whose tokens are matched in the text as they stand."""

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, bytes_only])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _smollm,
    "llama-bpe": _llama3,
    "gpt-2": _gpt2,
}


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes
    ----------
    vocab : number of tokens
    bos, eos : ids of the tokens that begin and end a text, or None
    add_bos : whether `encode` puts `bos` in front
    """

    vocab: int
    bos: int | None
    eos: int | None
    add_bos: bool
    _library: tokenizers.Tokenizer = field(repr=False)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; control tokens written out in it become their one id."""
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if self.add_bos and self.bos is not None else ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, control tokens written out."""
        text: str = self._library.decode(list(ids), skip_special_tokens=False)
        return text


def tokenizer_from_gguf(file: GGUFFile) -> Tokenizer:
    """Build the tokenizer that the metadata describes.

    Raises
    ------
    ModelFileError
        If the file has none, or it is damaged.
    UnsupportedModelError
        If it is no byte-level BPE, or splits words in a way that is not supported.
    """
    model = file.require("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise UnsupportedModelError(
            f"{file.path}: tokenizer {model!r} is not supported; supported: 'gpt2' (BPE on bytes)"
        )
    pre = file.require("tokenizer.ggml.pre", str)
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{file.path}: pre-tokenizer {pre!r} is not supported; supported: "
            f"{', '.join(_PRE_TOKENIZERS)}"
        )
    tokens = _strings(file, "tokenizer.ggml.tokens")
    pairs = (merge.partition(" ") for merge in _strings(file, "tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    types = file.get("tokenizer.ggml.token_type", list) or [1] * len(tokens)
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(types) != len(tokens):
        raise ModelFileError(f"{file.path}: {len(types)} token types for {len(tokens)} tokens")
    try:
        bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # The library raises nothing narrower.
        raise ModelFileError(f"{file.path}: the tokenizer's merges are damaged: {error}") from error
    library = tokenizers.Tokenizer(bpe)
    library.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool)
    return Tokenizer(
        vocab=len(tokens),
        bos=_token_id(file, "tokenizer.ggml.bos_token_id", len(tokens)),
        eos=_token_id(file, "tokenizer.ggml.eos_token_id", len(tokens)),
        add_bos=pre == "llama-bpe" if add_bos is None else add_bos,
        _library=library,
    )


def _token_id(file: GGUFFile, key: str, vocab: int) -> int | None:
    found = file.get(key, int)
    if found is not None and not 0 <= found < vocab:
        raise ModelFileError(
            f"{file.path}: metadata {key!r} is {found}, there are only {vocab} tokens"
        )
    return found


def _strings(file: GGUFFile, key: str) -> list[str]:
    values = file.require(key, list)
    if not all(isinstance(value, str) for value in values):
        raise ModelFileError(f"{file.path}: metadata {key!r} is not a list of strings")
    return values
