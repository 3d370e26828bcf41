"""Every variant of the dot product that this processor can run gives the same values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from simulator_programs import TINY, dense_program, header_for, random_operands
from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator import native, simulate, spec
from sparqle_tvm.target.simulator.dot import Dot, choose_dot
from sparqle_tvm.tirscript import cast

FEATURES = {
    "plain": frozenset(),
    "words": frozenset({"sse2"}),
    "avx2": frozenset({"sse2", "avx2"}),
    "vnni": frozenset({"sse2", "avx2", "avx512bw", "avx512vnni"}),
}


@dataclass(frozen=True)
class EmulatedVnni(Dot):
    """The variant ``vnni``, its one instruction written out: for processors without it."""

    def step(self, total, activations, weights):
        products = cast("int16x64", weights) * cast("int16x64", activations)
        pairs = T.reinterpret("int32x32", products)
        sums = ((pairs << T.broadcast(T.int32(16), 32)) >> T.broadcast(T.int32(16), 32)) + (
            pairs >> T.broadcast(T.int32(16), 32)
        )
        fours = T.reinterpret("int64x16", sums)
        high = cast("int32x16", fours >> T.broadcast(T.int64(32), 16))
        return total + cast("int32x16", fours) + high


def run_all(monkeypatch, choose):
    monkeypatch.setattr(spec, "choose_dot", choose)
    for options in (
        {},
        {"weight_signed": False, "group_size": 32, "has_min": True},
        {"weight_bits": 8, "group_size": 12},
    ):
        machine = replace(TINY, weight_buffer_bytes=65536)
        header = header_for(machine, 11, 41, 96, 96, **options)
        program = dense_program(header, 8, 37)
        operands = random_operands(np.random.default_rng(0), header, 11)
        result = simulate(program, operands.tensors)
        np.testing.assert_array_equal(result.output, operands.expected)


@pytest.mark.parametrize("variant", FEATURES)
def test_variants_agree(monkeypatch, variant):
    missing = FEATURES[variant] - native.host_features()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    assert choose_dot(FEATURES[variant], 4).variant == variant
    run_all(monkeypatch, lambda _, digit_bits: choose_dot(FEATURES[variant], digit_bits))


def test_layout_of_vnni(monkeypatch):
    run_all(monkeypatch, lambda _, __: EmulatedVnni("vnni", lanes=16, depth=4, rows=8))


def test_wide_digits_take_words():
    assert choose_dot(FEATURES["vnni"], 8) == Dot("words", lanes=8, depth=2, rows=4)
    assert choose_dot(FEATURES["words"], 8) == Dot("words", lanes=4, depth=2, rows=4)
    assert choose_dot((), 8).variant == "plain"
