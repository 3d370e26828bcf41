"""Names from outside are text, whatever they would be elsewhere."""

import re

import pytest

from sparqle_tvm.escaping import for_csv, for_html, for_markdown, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain names/with-1.5 (b) § ü 模型", None),
        ("a\x1b[2Jb\x07", r"a\x1b[2Jb\x07"),
        ("one\ntwo\tthree", "one two three"),
        ("\u202eabc\ud800", r"\u202eabc\ud800"),
    ],
)
def test_nothing_steers_the_terminal(text, shown):
    assert visible(text) == (text if shown is None else shown)


def test_html():
    assert for_html("<b> & `x` \x00") == "&lt;b&gt; &amp; `x` \\x00"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[/INST] *x* <b>|", r"\[/INST\] \*x\* \<b>\|"),
        ("`sparqle run --json` of `<b>`", r"`sparqle run --json` of \`\<b>\`"),
        ("attn_q _x_ 2 * 3 -0.5 a & b &lt;", r"attn_q \_x\_ 2 * 3 -0.5 a & b \&lt;"),
        ("# x", r"\# x"),
        ("- x", r"\- x"),
        ("12. x", r"12\. x"),
        ("> x", r"\> x"),
    ],
)
def test_markdown(text, shown):
    assert for_markdown(text) == shown
    # A renderer takes the backslashes away, and nothing else was added.
    assert re.sub(r"\\(?=[^a-z\s])", "", shown) == text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "=cmd|' /C calc'!A0"])
def test_no_cell_is_a_formula(text):
    assert for_csv(text) == f"'{text}"


def test_numbers_stay_numbers():
    assert [for_csv(value) for value in (-1, 0.5, None, True, "a-b")] == [
        -1,
        0.5,
        None,
        True,
        "a-b",
    ]
