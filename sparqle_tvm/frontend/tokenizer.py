"""The tokenizer of a GGUF file: BPE on bytes or characters, by the library ``tokenizers``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from sparqle_tvm.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparqle_tvm.frontend.gguf_file import GGUFFile

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""Values of "tokenizer.ggml.token_type". The third and fourth are matched as they stand."""

_SPACE = "\u2581"
"""What sentencepiece writes for a space."""

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# As llama's, but that a number is cut into its digits.
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, bytes_only])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _smollm,
    "llama-bpe": lambda: _words(_LLAMA3_WORDS),
    "qwen2": lambda: _words(_QWEN2_WORDS),
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
        If it is of another kind, or splits words in a way that is not supported.
    """
    model = file.require("tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{file.path}: tokenizer {model!r} is not supported; supported: 'gpt2' (BPE on bytes), "
            "'llama' (sentencepiece)"
        )
    tokens = _strings(file, "tokenizer.ggml.tokens")
    types = file.get("tokenizer.ggml.token_type", list) or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ModelFileError(f"{file.path}: {len(types)} token types for {len(tokens)} tokens")
    make = _on_bytes if model == "gpt2" else _sentencepiece
    try:
        library = make(file, tokens, types)
    except (ModelFileError, UnsupportedModelError):
        raise
    except Exception as error:  # The library raises nothing narrower.
        raise ModelFileError(f"{file.path}: the tokenizer's merges are damaged: {error}") from error
    library.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool)
    if add_bos is None:
        add_bos = model == "llama" or file.get("tokenizer.ggml.pre", str) == "llama-bpe"
    return Tokenizer(
        vocab=len(tokens),
        bos=_token_id(file, "tokenizer.ggml.bos_token_id", len(tokens)),
        eos=_token_id(file, "tokenizer.ggml.eos_token_id", len(tokens)),
        add_bos=add_bos,
        _library=library,
    )


def _on_bytes(file: GGUFFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """Byte-level BPE, its merges in order."""
    pre = file.require("tokenizer.ggml.pre", str)
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{file.path}: pre-tokenizer {pre!r} is not supported; supported: "
            f"{', '.join(_PRE_TOKENIZERS)}"
        )
    pairs = (merge.partition(" ") for merge in _strings(file, "tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    vocab = {token: index for index, token in enumerate(tokens)}
    bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe")
    library = tokenizers.Tokenizer(bpe)
    library.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    library.decoder = decoders.ByteLevel()
    return library


def _sentencepiece(file: GGUFFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """BPE of sentencepiece: two pieces merge to a token, that with the highest score first."""
    scores = file.require("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens) or not all(isinstance(score, float) for score in scores):
        raise ModelFileError(
            f"{file.path}: metadata 'tokenizer.ggml.scores' has no score per token"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    merged = [token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL]
    ranked = [
        (-scores[vocab[token]], vocab[token[:at]], vocab[token[at:]])
        for token in dict.fromkeys(merged)
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN]
    bpe = models.BPE(
        vocab=vocab,
        merges=[(tokens[left], tokens[right]) for _, left, right in sorted(ranked)],
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=_BYTE in types,
    )
    library = tokenizers.Tokenizer(bpe)
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool) is not False
    spaces = normalizers.Replace(" ", _SPACE)
    before, after = ([normalizers.Prepend(_SPACE)], [decoders.Strip(" ", 1, 0)])
    library.normalizer = normalizers.Sequence([*before * prefix, spaces])
    library.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after * prefix]
    )
    return library


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
