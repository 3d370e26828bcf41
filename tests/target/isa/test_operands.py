from __future__ import annotations

import pytest

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.operands import (
    ALWAYS,
    CODECS,
    NEVER,
    Address,
    Affine,
    Buffer,
    Condition,
    Extent,
    M,
    Reader,
)


def test_affine_adds_scales_and_normalises():
    value = 3 + Affine.loop(2, 8) * 2 + Affine.loop(0) + Affine.loop(1, 5) + Affine.loop(1, -5)
    assert value == Affine(3, ((0, 1), (2, 16)))
    assert value.loops == (0, 2)
    assert value.evaluate({0: 10, 2: 2}) == 3 + 10 + 32
    assert Affine.of(value) is value
    assert Affine.of(7) == Affine(7)


@pytest.mark.parametrize(
    ("operand", "text"),
    [
        (Affine(), "0"),
        (Affine(8, ((0, 64),)), "64*i0 + 8"),
        (Affine(-1, ((1, 1),)), "i1 + -1"),
        (Extent(64), "64"),
        (Extent(64, 100), "min(64, 100)"),
        (Extent(64, M, Affine.loop(0, 64)), "min(64, M - 64*i0)"),
        (Extent(64, 576, Affine.loop(0, 64) + 3), "min(64, 576 - (64*i0 + 3))"),
        (Address(Buffer.ACC, 16), "ACC[16]"),
        (
            Address(Buffer.ACT, 0, (0,), 2, 4096, Affine.loop(1, 128)),
            "ACT[0 + 4096*(i0 mod 2) + 128*i1]",
        ),
        (Address(Buffer.WGT, 8, (0, 2, 3), 3, 64), "WGT[8 + 64*(((i0*n2 + i2)*n3 + i3) mod 3)]"),
        (Condition.first(2), "i2 == 0"),
        (Condition.last(2), "i2 == n2 - 1"),
        (NEVER, "never"),
        (ALWAYS, "always"),
    ],
)
def test_text(operand, text):
    assert str(operand) == text


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", -(2**36) + 1),
        ("Affine", Affine(-3, ((0, 5), (31, -7)))),
        ("Extent", Extent(64, M, Affine.loop(0, 64))),
        ("Extent", Extent(64, 0)),
        ("Extent", Extent(64)),
        ("Address", Address(Buffer.WGT, 5, (3, 0), 2, 100, Affine.loop(1, 2) + 9)),
        ("Address | None", None),
        ("Address | None", Address(Buffer.ACT, 5)),
        ("Condition", Condition.last(4)),
        ("Limit", M),
        ("Limit", 12),
    ],
)
def test_bytes_round_trip_and_truncation_is_refused(kind, value):
    write, read = CODECS[kind]
    data = write(value)
    reader = Reader(data)
    assert read(reader) == value
    assert reader.left == 0
    for length in range(len(data)):
        with pytest.raises(ProgramError, match="within an operand"):
            read(Reader(data[:length]))


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        ("int", 2**36, "too large"),
        ("Affine", Affine.loop(32), "loop 32 does not exist"),
        ("Limit", -1, "must not be negative"),
        ("Extent", Extent(1, -5), "must not be negative"),
    ],
)
def test_what_has_no_bytes_is_refused(kind, value, match):
    with pytest.raises(ProgramError, match=match):
        CODECS[kind][0](value)


@pytest.mark.parametrize(
    ("kind", "data", "match"),
    [
        ("int", (2**36).to_bytes(8, "little"), "too large"),
        ("Address", b"\x03", "buffer 3 does not exist"),
        ("Condition", b"\x04\x00", "condition 4 does not exist"),
        ("Condition", b"\x00\x20", "loop 32 does not exist"),
        ("Limit", (-2).to_bytes(8, "little", signed=True), "no limit"),
        ("Limit", (-5).to_bytes(8, "little", signed=True), "must not be negative"),
        ("Affine", bytes(8) + b"\x01\x00" + bytes(8), "normal form"),
        ("Affine", bytes(8) + b"\x21", "number of loops 33"),
    ],
)
def test_bytes_that_mean_nothing_are_refused(kind, data, match):
    with pytest.raises(ProgramError, match=match):
        CODECS[kind][1](Reader(data))
