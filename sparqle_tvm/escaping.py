"""Text from outside (names of models, files, targets) in what we write: always text, never markup.

Everything that shows such text goes through one of these, at the last moment: the terminal and
error messages through `visible`, pages through `for_html`, Markdown through `for_markdown`, cells
of CSV files through `for_csv`.
"""

from __future__ import annotations

import html
import re
from typing import Any

CODE = re.compile(r"`([\w ./:=,+%-]+)`")
"""What our own sentences set as code; other backquotes are characters like any other."""

# Control characters, half surrogates, line separators, and what turns the direction of writing.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What is markup anywhere; underscores within a word and a lone ampersand are none.
_MARKDOWN = re.compile(r"([\\`\[\]<|~]|(?<!\s)\*|\*(?!\s)|(?<!\w)_|_(?!\w)|&(?=#?\w+;))")
# What is markup where a paragraph begins.
_MARKDOWN_START = re.compile(r"^(\s*\d*)(>|[#*+.)-](?=[\s#]|$))")
_FORMULA = ("=", "+", "-", "@")


def visible(text: str) -> str:
    """Text on one line, in which characters that steer a terminal or a reader are written out.

    Line ends and tabs become spaces, an escape character becomes ``\\x1b``.
    """
    return _INVISIBLE.sub(_written_out, text)


def for_html(text: str) -> str:
    """Text for a page."""
    return html.escape(visible(text))


def for_markdown(text: str) -> str:
    """Text for Markdown: what would be markup gets a backslash; our own code stays code."""
    # `split` gives what lies between pieces of code, and the pieces.
    parts = CODE.split(visible(text))
    parts[0] = _MARKDOWN_START.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\1", parts[0]))
    return parts[0] + "".join(
        _MARKDOWN.sub(r"\\\1", part) if i % 2 else f"`{part}`" for i, part in enumerate(parts[1:])
    )


def for_csv(value: Any) -> Any:
    """A plain value for a cell; text that a spreadsheet takes for a formula gets a quote mark."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    if not isinstance(value, str):
        return value
    shown = visible(value)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _written_out(found: re.Match[str]) -> str:
    character = found[0]
    if character in "\n\r\t":
        return " "
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
