"""Doubling and halving every field: each change is an estimate of its own."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from sparqle_tvm.models.shapes import MODELS
from sparqle_tvm.results.sensitivity import FieldChange, Sensitivity
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.studies.sensitivity import COMPARED, count_changes, sensitivity
from sparqle_tvm.target.accelerator import PRESETS, Accelerator

SMALL = dataclasses.replace(MODELS["smollm2-135m"], layers=2)
EDGE = PRESETS["sparqle/edge"]


def question(target: Accelerator, **more):
    return estimate(SMALL, "prefill", seq=64, target=target, **{"schemes": COMPARED, **more})


@functools.cache
def found() -> Sensitivity:
    return sensitivity(EDGE, question)


def change(name: str, factor: float, among: Sensitivity | None = None) -> FieldChange:
    changes = (among or found()).changes
    (one,) = (c for c in changes if (c.field, c.factor) == (name, factor))
    return one


def test_every_number_of_the_accelerator_is_changed_both_ways():
    numbers = {
        name
        for name, value in dataclasses.asdict(EDGE).items()
        if type(value) in (int, float)  # not bool
    }
    # One memory, to which both add as much: one row says so.
    assert EDGE.scratchpad
    assert EDGE.weight_buffer_bytes == EDGE.activation_buffer_bytes
    numbers -= {"weight_buffer_bytes"}
    assert {(c.field, c.factor) for c in found().changes} == {
        (name, factor) for name in numbers for factor in (2.0, 0.5)
    }
    for one in found().changes:
        assert one.after == one.before * one.factor == getattr(EDGE, one.field) * one.factor
        assert bool(one.parts) != bool(one.impossible)


@pytest.mark.parametrize(("name", "value"), [("dram_bytes_per_cycle", 32.0), ("lanes", 32)])
def test_a_change_is_what_the_estimates_say(name, value):
    before, after = question(EDGE), question(dataclasses.replace(EDGE, **{name: value}))
    part = change(name, 2.0).parts["dense_layers"]
    for scheme in COMPARED:
        old, new = (e.schemes[scheme].dense_layers for e in (before, after))
        assert old.seconds * (1 + part.seconds[scheme]) == pytest.approx(new.seconds)
        spent = new.energy.joules.mid
        assert old.energy.joules.mid * (1 + part.joules[scheme]) == pytest.approx(spent)
    saved = after.saved("sparqle", "dense_layers")
    assert (part.time_saved, part.energy_saved) == (saved.cycles, saved.energy.mid)


def test_progress_is_called_for_every_change():
    base, steps = found().base, []
    sensitivity(EDGE, lambda _: base, progress=lambda: steps.append(1))
    assert len(steps) == count_changes(EDGE) == len(found().changes)


def test_half_the_clock_takes_twice_the_time_and_saves_the_same():
    for part, one in change("clock_ghz", 0.5).parts.items():
        assert one.seconds == pytest.approx({"dense": 1.0, "sparqle": 1.0})
        assert one.time_saved == found().base.saved("sparqle", part).cycles


@pytest.mark.parametrize(
    ("fields", "name", "factor", "reason"),
    [
        ({}, "digit_bits", 2.0, "activations would have 16 bits"),
        ({}, "float_bytes", 0.5, "float_bytes = 1 must be one of (2, 4)"),
        ({"float_bytes": 4}, "float_bytes", 2.0, "float_bytes = 8 must be one of (2, 4)"),
        ({"lanes": 1}, "lanes", 0.5, "lanes = 0.5 must be"),
        ({"dma_descriptor_cycles": 0}, "dma_descriptor_cycles", 2.0, "remains what it is"),
        ({"accumulator_buffer_bytes": 4096}, "accumulator_buffer_bytes", 0.5, "use at least 4096"),
    ],
)
def test_what_cannot_be_is_said_with_its_reason(fields, name, factor, reason):
    # Which accelerators there are does not depend on what is estimated on them.
    base = found().base
    one = change(name, factor, sensitivity(dataclasses.replace(EDGE, **fields), lambda _: base))
    assert reason in one.impossible
    assert not one.parts
    assert not one.impossible.startswith("accelerator")


@pytest.mark.parametrize("name", ["clock_ghz", "vector_macs_per_cycle"])
def test_what_no_dense_op_depends_on_leaves_their_time_as_it_is(name):
    base = found().base
    changed = question(dataclasses.replace(EDGE, **{name: 2 * getattr(EDGE, name)}))
    for before, after in zip(base.layers, changed.layers, strict=True):
        assert before.costs == after.costs
