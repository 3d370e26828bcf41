"""The built-in text, and tokens of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparqle_tvm.errors import InvalidArgumentError, TextError
from sparqle_tvm.frontend.text import builtin_text, load_tokens, read_text


class Letters:
    """A tokenizer with one token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


LETTERS: Any = Letters()


def test_builtin_text_is_long_prose() -> None:
    text = builtin_text()
    assert text == builtin_text()
    assert len(text) > 100_000
    assert "::=" not in text
    assert ">>>" not in text
    letters = sum(letter.isalpha() or letter == " " for letter in text)
    assert letters / len(text) > 0.9


def test_builtin_text_repeats_no_paragraph() -> None:
    paragraphs = builtin_text().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))


def test_load_tokens() -> None:
    assert load_tokens(LETTERS, "abc", 2) == [97, 98]
    assert load_tokens(LETTERS, "abc", 3) == [97, 98, 99]


def test_text_shorter_than_asked_for_says_how_long_it_is() -> None:
    with pytest.raises(TextError, match="has 3 tokens, 4 were asked for"):
        load_tokens(LETTERS, "abc", 4)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_text(text: str) -> None:
    with pytest.raises(TextError, match="empty"):
        load_tokens(LETTERS, text, 1)


def test_no_tokens_asked_for() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        load_tokens(LETTERS, "abc", 0)


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("naïve ☃".encode())
    assert read_text(path) == "naïve ☃"


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin"
    path.write_bytes(b"na\xefve")
    with pytest.raises(TextError, match=r"not UTF-8 text.*byte 2"):
        read_text(path)


def test_text_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="cannot be read"):
        read_text(tmp_path / "absent")
    with pytest.raises(TextError, match="cannot be read"):
        read_text(tmp_path)
