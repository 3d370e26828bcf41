"""Text to run a language model on: the built-in prose, or a file of the user's."""

from __future__ import annotations

import re
from os import PathLike
from typing import TYPE_CHECKING

from sparqle_tvm import files
from sparqle_tvm.errors import InvalidArgumentError, TextError

if TYPE_CHECKING:
    from sparqle_tvm.frontend.tokenizer import Tokenizer

MIN_WORDS = 12
"""A paragraph with fewer words is a heading or an entry of a list rather than prose."""


def _prose(topic: str) -> list[str]:
    """Return the paragraphs of a topic that are sentences, each as one line."""
    paragraphs = []
    for block in topic.split("\n\n"):
        lines = block.strip("\n").splitlines()
        words = block.split()
        plain = all(line and not line[0].isspace() for line in lines)
        if plain and len(words) >= MIN_WORDS and words[-1].endswith((".", ":")):
            unwrapped = re.sub(r"(?<=\w)-\n(?=\w)", "-", block)
            paragraphs.append(" ".join(unwrapped.split()))
    return [paragraph for paragraph in paragraphs if "::=" not in paragraph]


def builtin_text() -> str:
    """Return English prose that every Python has: the paragraphs of its language reference.

    The topics of ``pydoc_data`` without code, grammar and headings; those with most prose first.
    """
    from pydoc_data import topics

    prose = {name: _prose(text) for name, text in topics.topics.items()}
    order = sorted(prose, key=lambda name: (-sum(map(len, prose[name])), name))
    # Some paragraphs stand in several topics; a dict keeps the first of each, in order.
    return "\n\n".join(dict.fromkeys(paragraph for name in order for paragraph in prose[name]))


def builtin_parts() -> tuple[str, str]:
    """Return two parts of the built-in text that share no paragraph: to measure on, to learn from.

    The first half, with which `builtin_text` begins, is what models are measured on; calibration
    runs the second half.
    """
    paragraphs = builtin_text().split("\n\n")
    half, seen, cut = sum(map(len, paragraphs)) / 2, 0, 0
    while seen < half:
        seen += len(paragraphs[cut])
        cut += 1
    return "\n\n".join(paragraphs[:cut]), "\n\n".join(paragraphs[cut:])


def read_text(path: str | PathLike[str]) -> str:
    """Read a text file.

    Raises
    ------
    TextError
        If there is no such file, it is not UTF-8, or larger than `files.MAX_TEXT_BYTES`.
    """
    return files.read_text(path, TextError)


def load_tokens(tokenizer: Tokenizer, text: str, count: int) -> list[int]:
    """Return the first `count` tokens of a text.

    Raises
    ------
    InvalidArgumentError
        If `count` is less than 1.
    TextError
        If the text is empty, or has fewer tokens.
    """
    if count < 1:
        raise InvalidArgumentError(f"the number of tokens is {count}, it must be at least 1")
    if not text.strip():
        raise TextError("the text is empty")
    tokens = tokenizer.encode(text)
    if len(tokens) < count:
        raise TextError(f"the text has {len(tokens)} tokens, {count} were asked for")
    return tokens[:count]
