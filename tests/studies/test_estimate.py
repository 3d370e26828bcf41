"""Estimates of published models: sums, limits, bands, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest

from sparqle_tvm.errors import InvalidArgumentError, TargetError
from sparqle_tvm.files import plain
from sparqle_tvm.models.shapes import MODELS
from sparqle_tvm.models.sparsity import measured
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import PARTS
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.attention_op import AttentionOp
from sparqle_tvm.target.cost.attention import attention_cost
from sparqle_tvm.target.cost.attention_choice import choose_plan
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import Band, energy_table
from sparqle_tvm.target.cost.limits import LIMITS
from sparqle_tvm.target.cost.model import EncodedActivation, pass_cost
from sparqle_tvm.target.cost.vector import attended_pairs
from sparqle_tvm.target.simulator.attention_work import Work

SMALL = dataclasses.replace(MODELS["smollm2-135m"], layers=2)


@functools.cache
def small(phase: str = "prefill", **options: object) -> Estimate:
    return estimate(SMALL, phase, **{"seq": 64, **options})


@functools.cache
def llama(phase: str, **options: object) -> Estimate:
    return estimate("llama2-7b", phase, **{"seq": 2048, **options})


def array_cycles(found: Estimate, scheme: str) -> int:
    cycles = sum(layer.times * layer.costs[scheme].mma_cycles for layer in found.layers)
    assert cycles == found.schemes[scheme].mma_cycles
    return cycles


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_an_estimate_is_what_the_cost_model_counts(phase):
    """With digits of no variance, drawn layers are like any others: the sums have to be equal."""
    found = small(phase, msb_sparsity=1.0, attention="vector")
    rows = 64 if phase == "prefill" else 1
    encodings = []
    for layer in range(2):
        for kind in ("qkv", "o", "gate_up", "down"):
            readers = SMALL.readers(kind, rows)
            k = readers[0].k
            nothing = RowNnz(np.zeros((rows, k // 8), dtype=np.int32), 8, k)
            encodings.append(
                EncodedActivation(f"{kind}{layer}", nothing, "signed", readers, density=0.0)
            )
    head = SMALL.readers("output", 1)
    nothing = RowNnz(np.zeros((1, head[0].k // 8), dtype=np.int32), 8, head[0].k)
    encodings.append(EncodedActivation("head", nothing, "signed", head, density=0.0))
    for scheme in ALL_SCHEMES:
        cost = pass_cost(
            encodings,
            SMALL.transformer(),
            tokens=rows,
            past=0 if phase == "prefill" else 64,
            accelerator=PRESETS["sparqle/edge"],
            scheme=scheme,
        )
        for part in PARTS:
            totals, figures = getattr(cost, part), found.schemes[scheme].part(part)
            assert figures.events == totals.events
            assert (figures.cycles, figures.dram_bytes) == (totals.cycles, totals.dram_bytes)
            assert figures.limits == totals.limits
            spent = energy(totals.events, found.accelerator, found.table)
            assert figures.energy.joules == spent.joules


def test_llama2_saves_what_was_aimed_at_while_dense_is_no_slower_than_it_was():
    found = estimate("llama2-7b", "prefill", seq=2048, schemes=("dense", "sparqle"))
    # What dense layers took before schedules were chosen by a walk and by energy.
    assert found.schemes["dense"].dense_layers.cycles <= 6_598_184_130
    assert found.saved("sparqle", "dense_layers").cycles >= 0.31
    assert found.saved("sparqle").cycles >= 0.27
    assert found.saved("sparqle").energy.mid >= 0.13


def test_part_of_the_saving_that_other_tiles_make():
    found = llama("prefill", schemes=("dense", "sparqle"), attention="vector")
    dense, split = (found.schemes[s].dense_layers for s in ("dense", "sparqle"))
    for layer in found.layers:
        assert layer.costs["sparqle"] != layer.costs["dense"]
    # Planes alone cannot save more than all MSB digits.
    assert 0 < found.same_tiles["dense_layers"] < 0.5
    assert split.energy.joules.mid < dense.energy.joules.mid
    nothing = llama("prefill", msb_sparsity=0.0, schemes=("dense", "sparqle"), attention="vector")
    # Without zero digits everything is left dense, with its tiles.
    assert nothing.same_tiles["dense_layers"] == pytest.approx(0, abs=1e-3)
    assert llama("decode", schemes=("sparqle",)).same_tiles == {}


def test_parts_and_limits_add_up():
    found = small()
    for scheme, estimated in found.schemes.items():
        dense, whole = estimated.dense_layers, estimated.whole_model
        besides = [work for work in found.others if work.part in ("attention", "vector")]
        rest = sum(work.times * work.costs[scheme].total_cycles for work in besides)
        assert dense.cycles + rest == whole.cycles
        assert dense.seconds == dense.cycles / 1e9
        for figures in (dense, whole):
            assert tuple(figures.limits) == LIMITS
            assert sum(figures.limits.values()) == figures.cycles
            assert sum(map(figures.share, LIMITS)) == pytest.approx(1.0)
        encodes = [work for work in found.others if work.part == "encode"]
        assert sum(work.times for work in encodes) == 4 * 2 + 1
        works = [*found.layers, *encodes]
        assert dense.cycles == sum(x.times * x.costs[scheme].total_cycles for x in works)
        assert dense.dram_bytes == sum(x.times * x.costs[scheme].dram_bytes for x in works)
        assert (
            dense.macs
            == 64
            * 2
            * sum(
                shape.n * shape.k
                for kind in ("qkv", "o", "gate_up", "down")
                for shape in SMALL.readers(kind, 64)
            )
            + SMALL.vocab * SMALL.embed
        )
        attention = 2 * 2 * attended_pairs(64, 0) * SMALL.heads * SMALL.head_dim
        assert whole.macs - dense.macs == attention


def test_llama2_prefill_gains_and_decode_waits_for_weights():
    prefill, decode = llama("prefill"), llama("decode")
    for found in (prefill, decode):
        cycles = {s: e.dense_layers.cycles for s, e in found.schemes.items()}
        joules = {s: e.dense_layers.energy.joules.mid for s, e in found.schemes.items()}
        assert cycles["a4"] < cycles["sparqle"]
        assert joules["a4"] < joules["native"] < joules["dense"]
    assert 0.1 < prefill.saved("sparqle", "dense_layers").cycles < 0.4
    assert 0.05 < prefill.saved("sparqle").energy.mid < 0.3
    assert not prefill.schemes["dense"].whole_model.weight_bound
    for estimated in decode.schemes.values():
        assert estimated.whole_model.weight_bound
        assert estimated.whole_model.share("kv_cache") > 0.05
    assert abs(decode.saved("sparqle", "dense_layers").cycles) < 0.02
    # Values of keys without probability are not loaded.
    assert 0.02 < decode.saved("sparqle").cycles < 0.1


def test_dram_bytes_of_llama2_are_whole_loads_of_planes_weights_and_outputs():
    """Of planes an activation has a digit, a bit, and another digit if it is stored."""
    found = llama("prefill")
    together: dict[tuple[str, float], list] = {}
    for layer in found.layers:
        together.setdefault((layer.type, layer.msb_sparsity), []).append(layer)
    sums = {"dense": 0.0, "sparqle": 0.0}
    for (_, sparsity), layers in together.items():
        one, n = layers[0], sum(layer.n for layer in layers)
        element = {"dense": 1.0, "sparqle": 0.5 + 0.125 + 0.5 * (1 - sparsity)}
        for scheme in sums:
            costs = [layer.costs[scheme] for layer in layers]
            weights = sum(cost.weight_bytes for cost in costs)
            outputs = one.m * n * found.accelerator.float_bytes
            activations = sum(cost.dram_bytes for cost in costs) - weights - outputs
            stored = one.m * one.k * element["dense" if one.left_dense else scheme]
            groups = one.k // one.group_size if one.group_size else 0
            matrix = n * (one.k * one.weight_bits / 8 + 2 * groups)
            loads = [activations / stored, weights / matrix]
            # Scales, pointers and bytes that digits of a row are padded to come on top.
            assert loads == pytest.approx([round(load) for load in loads], rel=5e-3)
            again = round(loads[0]) * stored + round(loads[1]) * matrix
            sums[scheme] += one.times * (again + outputs)
    encodes = [o for o in found.others if o.part == "encode"]
    for scheme in sums:
        sums[scheme] += sum(o.times * o.costs[scheme].dram_bytes for o in encodes)
    saved = found.saved("sparqle", "dense_layers").dram_bytes
    assert saved == pytest.approx(1 - sums["sparqle"] / sums["dense"], abs=0.005)
    assert saved > 0


def test_sparser_saves_more_and_nothing_costs_more():
    found = [
        llama("prefill", msb_sparsity=s, schemes=("dense", "sparqle")) for s in (0.0, 0.5, 0.9)
    ]
    assert all(layer.left_dense for layer in found[0].layers)
    assert not any(layer.left_dense for layer in found[2].layers)
    saved = [one.saved("sparqle", "dense_layers").energy for one in found]
    assert saved[0].mid == 0 < saved[1].mid < saved[2].mid
    assert all(band.low < band.mid < band.high for band in saved[1:])


def test_layers_that_run_as_one_have_their_shares():
    """q, k and v of equal channels take a third each, of one load of their activations."""
    found = llama("prefill", schemes=("dense", "sparqle"))
    for scheme in found.schemes:
        dense_layers = found.schemes[scheme].dense_layers
        parts = [(layer.costs[scheme], layer.times) for layer in found.layers]
        parts += [(o.costs[scheme], o.times) for o in found.others if o.part == "encode"]
        assert sum(cost.total_cycles * times for cost, times in parts) == dense_layers.cycles
        assert sum(cost.dram_bytes * times for cost, times in parts) == dense_layers.dram_bytes
        alike = [x.costs[scheme].dram_bytes for x in found.layers if x.label in ("q", "k", "v")]
        assert max(alike[:3]) - min(alike[:3]) <= 1


def test_sorted_rows_shorten_the_array_s_work():
    found = {b: llama("prefill", schemes=("sparqle",), balance=b) for b in ("none", "array")}
    for balance, estimated in found.items():
        encodes = [work for work in estimated.others if work.part == "encode"]
        blocks = {work.block_rows for work in encodes if work.label == "qkv"}
        assert (blocks == {0}) == (balance == "none")
    assert array_cycles(found["array"], "sparqle") < array_cycles(found["none"], "sparqle")


def test_batch_shares_weights_but_not_keys():
    one, many = (small("decode", batch=batch, schemes=("dense",)) for batch in (1, 4))
    weights, cache = (
        [
            sum(getattr(work.costs["dense"], name) * work.times for work in works)
            for works in all_works
        ]
        for name, all_works in (
            ("weight_bytes", (one.layers, many.layers)),
            ("cache_bytes", (one.others, many.others)),
        )
    )
    assert weights[0] == weights[1] > 0
    assert cache[1] == 4 * cache[0]
    # 2 layers, keys and values of 64 + 1 tokens read and of 1 token written, and 2 scales of each.
    assert cache[0] == 2 * (65 + 1) * SMALL.kv_heads * (2 * SMALL.head_dim + 8)
    macs = [found.schemes["dense"].whole_model.macs for found in (one, many)]
    assert macs[1] == 4 * macs[0]
    sizes = [(e.tokens, e.past, e.seq, e.batch) for e in (one, many, small(batch=3))]
    assert sizes == [(1, 64, 64, 1), (1, 64, 64, 4), (64, 0, 64, 3)]
    halved = small("decode", schemes=("dense",), kv_bits=4)
    halved_bytes = 2 * (65 + 1) * SMALL.kv_heads * SMALL.head_dim
    assert sum(work.costs["dense"].cache_bytes for work in halved.others) == halved_bytes


def test_digits_are_those_of_the_distribution():
    found = llama("prefill")
    assert found.digits.source == measured(4).label
    assert found.digits.transferred
    assert found.digits.layer_types["o"] == measured(4).msb_sparsity("o")
    shares = [layer.msb_sparsity for layer in found.layers if layer.type == "o"]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert np.mean(shares) == pytest.approx(measured(4).msb_sparsity("o"), abs=0.003)
    alone = small(msb_sparsity="0.75", schemes=("sparqle",))
    assert alone.msb_sparsity == pytest.approx(0.75, abs=0.005)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_digits_are_those_measured_at_the_accelerator_s_width(k):
    machine = dataclasses.replace(PRESETS["sparqle/edge"], name="mine", digit_bits=k)
    found = llama("prefill", target=machine, schemes=("dense", "sparqle", "a4"))
    assert found.digits.source == measured(k).label
    assert found.to_json()["digits"]["digit_bits"] == k
    saved = found.saved("sparqle", "dense_layers").cycles
    # 16-bit activations have hardly a digit of 8 bits that is zero: there is nothing to gain.
    assert (saved > 0.1) == (k != 8)
    assert (found.msb_sparsity < 0.1) == (k == 8)
    assert f"a{k}: activations of {k} bits" in " ".join(found.notes)
    # A number is the user's word, at any width.
    assert small(target=machine, msb_sparsity=0.7).msb_sparsity == pytest.approx(0.7, abs=0.005)


def test_more_tokens_than_positions_are_noted():
    within = estimate("bitnet-3b", "prefill", seq=2048, schemes=("dense",))
    beyond = estimate("bitnet-3b", "decode", seq=2048, schemes=("dense",))
    assert within.positions_note == ""
    assert "2,049 tokens is beyond the model's 2,048 positions" in beyond.positions_note
    assert beyond.to_json()["notes"] == list(beyond.notes)
    assert beyond.notes[0] == beyond.positions_note
    unknown = dataclasses.replace(MODELS["bitnet-3b"], max_positions=0)
    assert not estimate(unknown, "decode", seq=4096, schemes=("dense",)).positions_note


def test_unchecked_constants_are_noted():
    assert any("Not checked" in note and "LPDDR5" in note for note in mobile().notes)
    checked = small(table=energy_table("45nm", "ddr4"))
    assert not any("Not checked" in note for note in checked.notes)


def mobile() -> Estimate:
    return small(target="sparqle/mobile", schemes=("dense",))


def test_time_and_area_are_relative_to_the_baseline():
    found = small()
    by = {(one.part, one.scheme): one for one in found.time_areas}
    assert len(by) == 2 * len(found.schemes)
    for part in ("array", "whole_model"):
        assert by[part, "dense"].area == by[part, "dense"].time_area == Band.exact(1.0)
    array, whole = (by[part, "sparqle"] for part in ("array", "whole_model"))
    dense, split = found.schemes["dense"], found.schemes["sparqle"]
    assert array.time_area.mid == pytest.approx(
        array.area.mid * split.mma_cycles / dense.mma_cycles
    )
    # Buffers are the same, so that the whole differs less, the less the more room they take.
    assert 1 < whole.area.low < whole.area.mid < whole.area.high < array.area.mid
    assert small(schemes=("sparqle",)).time_areas == ()


def test_json_is_the_whole_estimate():
    found = small(table=energy_table("45nm", "hbm2"))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["kind"], data["version"]) == ("estimate", 6)
    assert data["notes"] == list(found.notes)
    assert data["time_areas"] == plain(found.time_areas)
    read = Estimate.from_json(data)
    assert read.notes == found.notes
    assert read.to_json() == found.to_json()
    assert read.schemes == found.schemes
    assert read.table.name == "45nm + HBM2"
    assert list(data["schemes"]) == list(ALL_SCHEMES)
    for scheme, cost in data["schemes"].items():
        for part in PARTS:
            joules = cost[part]["energy"]["joules"]
            assert joules["low"] < joules["mid"] < joules["high"]
            components = [band["mid"] for band in cost[part]["energy"]["components"].values()]
            assert sum(components) == pytest.approx(joules["mid"])
            saved = found.saved(scheme, part)
            dense = found.schemes["dense"].part(part)
            assert saved.cycles == 1 - cost[part]["cycles"] / dense.cycles
            if scheme == "dense":
                assert saved.cycles == saved.dram_bytes == saved.energy.mid == 0
    assert data["digits"]["layer_types"]["qkv"] == measured(4).msb_sparsity("qkv")


def test_static_power_can_be_given():
    found = small(schemes=("dense",), static_watts=0.25).schemes["dense"].whole_model
    static = found.energy.components["static"]
    assert static.low == static.mid == static.high == pytest.approx(0.25 * found.seconds)


def test_without_a_baseline_nothing_is_compared():
    found = small(schemes=("sparqle", "a4"))
    assert all(cost.whole_model.saved is None for cost in found.schemes.values())
    assert found.schemes["sparqle"].mma_saved is None
    split, floor = (found.schemes[s].dense_layers.cycles for s in ("sparqle", "a4"))
    assert split > floor
    with pytest.raises(InvalidArgumentError, match=r"schemes sparqle, a4 .*not dense"):
        found.saved("sparqle", "dense_layers")
    with pytest.raises(InvalidArgumentError, match="not attention"):
        small().saved("sparqle", "attention")


def test_targets_and_tables():
    server = small(target="sparqle/server", schemes=("dense",))
    assert server.table.name == "7nm + HBM2"
    narrow = dataclasses.replace(PRESETS["sparqle/edge"], msb_across_groups=False, name="narrow")
    got, plain = (
        small(target=target, schemes=("dense", "sparqle"), balance="none")
        for target in (narrow, "sparqle/edge")
    )
    assert array_cycles(got, "dense") == array_cycles(plain, "dense")
    assert array_cycles(got, "sparqle") > array_cycles(plain, "sparqle")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "llama9"}, InvalidArgumentError, "unknown model 'llama9'; known: smollm2-135m"),
        ({"phase": "train"}, InvalidArgumentError, "phase 'train' is unknown"),
        ({"seq": 0}, InvalidArgumentError, "seq = 0 must be at least 1"),
        ({"batch": -1}, InvalidArgumentError, "batch = -1 must be at least 1"),
        ({"kv_bits": 0}, InvalidArgumentError, "kv_bits = 0 must be positive"),
        ({"kv_bits": 6}, InvalidArgumentError, "kv_bits = 6 must be one of 4, 8, 16"),
        ({"msb_sparsity": measured(8)}, InvalidArgumentError, "is about digits of 8 bits, the acc"),
        ({"msb_sparsity": 1.1}, InvalidArgumentError, "MSB sparsity = 1.1 must be from 0 to 1"),
        ({"static_watts": -1.0}, InvalidArgumentError, "static_watts = -1.0 must not be negative"),
        ({"balance": "luck"}, InvalidArgumentError, "'luck' is unknown; known: array, time, none"),
        (
            {"schemes": ("int3",)},
            InvalidArgumentError,
            "ones of dense, sparqle, native, a4",
        ),
        (
            {"schemes": ("a4", "a4")},
            InvalidArgumentError,
            "ones of dense, sparqle, native, a4",
        ),
        ({"schemes": ()}, InvalidArgumentError, "ones of dense, sparqle, native, a4"),
        ({"target": "none.toml"}, TargetError, "none.toml cannot be read"),
    ],
)
def test_bad_input(change, error, message):
    options = {"model": SMALL, "phase": "prefill", "seq": 16, **change}
    with pytest.raises(error, match=message):
        estimate(options.pop("model"), options.pop("phase"), **options)


def test_attention_runs_on_the_array_where_it_can():
    found = small("decode", seq=2048)
    parts = [other for other in found.others if other.part == "attention"]
    assert found.attention.unit == "array" and not found.attention.reason
    assert sum(other.times for other in parts) == SMALL.layers
    assert "attention" not in {o.label for o in found.others if o.part == "vector"}
    baseline = {other.costs["dense"].dram_bytes for other in parts}
    assert len(baseline) == 1
    for other in parts:
        # Keys of every token, values of the live ones only.
        assert other.costs["sparqle"].cache_bytes < other.costs["dense"].cache_bytes
    saved = found.saved("sparqle").cycles
    vector = small("decode", seq=2048, attention="vector")
    assert vector.attention.note == (
        "Attention runs on the vector unit: the vector unit was asked for."
    )
    assert saved > vector.saved("sparqle").cycles
    assert found.schemes["dense"].whole_model.macs == vector.schemes["dense"].whole_model.macs


def test_beyond_what_was_measured_it_says_so():
    assert not small("decode", seq=2048).attention.transferred
    beyond = small("decode", seq=16384)
    assert beyond.attention.transferred
    assert "there are more keys here" in " ".join(beyond.notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kv_bits": 16}, "keys and values have 16 bits, programs take 8"),
        (
            {"target": dataclasses.replace(PRESETS["sparqle/edge"], name="k8", digit_bits=8)},
            "digits have 8 bits",
        ),
    ],
)
def test_what_the_array_cannot_do_is_said(options, reason):
    found = (
        small("decode", **options)
        if "kv_bits" in options
        else estimate(SMALL, "decode", seq=64, msb_sparsity=0.5, **options)
    )
    assert found.attention.unit == "vector"
    assert reason in found.attention.reason
    with pytest.raises(InvalidArgumentError, match=reason):
        estimate(SMALL, "decode", seq=64, msb_sparsity=0.5, attention="array", **options)


def test_a_long_prefill_is_counted_at_places():
    """Six places of a prefill are within 5 % of all of its blocks."""
    from sparqle_tvm.studies import attention as module

    op = AttentionOp(6000, 6000, 2, 3, 64, scheme="dense", window="unsigned")
    machine = dataclasses.replace(PRESETS["sparqle/edge"], name="buffers", scratchpad=False)
    plan = choose_plan(op, machine)
    assert not plan.stays
    places = module._places(op, plan)
    assert places[0][0] < op.rows
    some, _ = module._cost(op, machine, "dense", None, 0)
    header = plan.header(op, machine)
    work = Work.uniform(header, header.limits(6000, 0), 0.0, 1.0, 0.0)
    whole = attention_cost(op, machine, plan, work)
    assert some.total_cycles == pytest.approx(whole.total_cycles, rel=0.05)
    assert some.dram_bytes == pytest.approx(whole.dram_bytes, rel=0.05)
    assert some.macs == whole.macs


def test_a_cache_in_planes_is_read_faster():
    found = {
        kv: estimate("llama3-8b", "decode", seq=32768, kv=kv, schemes=("dense", "sparqle"))
        for kv in ("int8", "planes", "planes:4", "int6")
    }
    cycles = {
        kv: {
            s: sum(o.times * o.costs[s].total_cycles for o in e.others if o.part == "attention")
            for s in ("dense", "sparqle")
        }
        for kv, e in found.items()
    }
    # The same integers, plain: exact planes change nothing for the baseline, fewer bits do.
    assert cycles["planes"]["dense"] == cycles["int8"]["dense"]
    assert cycles["planes:4"]["dense"] < cycles["int8"]["dense"]
    assert cycles["int6"]["dense"] < 0.9 * cycles["int8"]["dense"]
    assert cycles["planes:4"]["sparqle"] < cycles["planes"]["sparqle"] < cycles["int8"]["sparqle"]
    assert "stored as planes:4" in " ".join(found["planes:4"].notes)
    assert found["planes"].to_json()["kv"] == "planes"


def test_a_cache_in_planes_needs_the_array():
    with pytest.raises(InvalidArgumentError, match="is about attention on the array"):
        small("decode", kv="planes", attention="vector")
    with pytest.raises(InvalidArgumentError, match="is no storage of keys and values"):
        small("decode", kv="planes:0.5x")


@pytest.mark.parametrize("model", ["bitnet-3b", "llama2-7b"])
def test_decode_with_attention_is_not_slower_where_bandwidth_is_high(model: str):
    """A chunk of keys has three descriptors, under every scheme: few chunks are tried, too."""
    for batch in (1, 16):
        found = estimate(
            *(model, "decode"),
            seq=2048,
            batch=batch,
            target="sparqle/server",
            schemes=("dense", "sparqle"),
            same_tiles=False,
        )
        assert found.attention.unit == "array"
        times = {scheme: costs.whole_model.cycles for scheme, costs in found.schemes.items()}
        assert times["sparqle"] < 1.005 * times["dense"], batch
