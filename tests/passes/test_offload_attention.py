from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import relax

import sparqle_tvm
from sparqle_tvm import dialect, passes
from sparqle_tvm.errors import ProgramError, QuantizationError
from sparqle_tvm.passes import PassReport
from sparqle_tvm.runtime.launch import recording_attention
from sparqle_tvm.target.accelerator import PRESETS

EDGE = PRESETS["sparqle/edge"]


def module(
    tokens: object = None, keys: object = None, *, mask: bool = False, width: int = 16, **options
):
    """Attention of 6 query heads and 2 key heads; `tokens` and `keys` symbolic by default."""
    n = tvm.tirx.Var("n", "int64") if tokens is None else tokens
    count = tvm.tirx.Var("p", "int64") if keys is None else keys
    builder = relax.BlockBuilder()
    given = [
        relax.Var(name, relax.TensorType(dims, "float32"))
        for name, dims in (
            ("q", (n, 6, width)),
            ("k", (count, 2, width)),
            ("v", (count, 2, width)),
        )
    ]
    if mask:
        given.append(relax.Var("mask", relax.TensorType((n, count), "bool")))
    with builder.function("main", given):
        with builder.dataflow():
            call = dialect.attention(*given, **{"causal": 1, "scale": 0.25, **options}, label="att")
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    return builder.get()


def operands(tokens: int, keys: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = ((tokens, 6, 16), (keys, 2, 16), (keys, 2, 16))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.fixture(scope="module")
def both():
    mod = module()
    return [sparqle_tvm.compile(mod, "sparqle/edge", engine=e) for e in ("simulator", "host")]


@pytest.mark.parametrize(
    ("tokens", "keys", "bucket"),
    [(1, 1, (1, 512)), (1, 700, (1, 1024)), (5, 20, (64, 512)), (70, 600, (512, 1024))],
)
def test_programs_give_the_bits_of_the_host(both, tokens, keys, bucket):
    simulator, host = both
    given = operands(tokens, keys, seed=tokens + keys)
    with recording_attention() as launches:
        found = simulator["main"](*given).numpy()
    assert np.array_equal(found, host["main"](*given).numpy())
    (launch,) = launches
    op = launch.program.header.op
    assert (op.rows, op.keys) == bucket
    assert (launch.label, launch.rows, launch.past) == ("att", tokens, keys - tokens)
    # A decode step of the last token meets what the last rows met.
    last = launch.result.work.last
    assert sorted(last) == list(range(6))
    assert all(len(p) == keys for _, p in last.values())


def test_a_cache_in_planes_gives_the_same_bits():
    """Keys of one head in planes, values of fewer levels; programs know of both."""
    mod = module(3, 40, key_planes="p-", value_planes="p", value_levels=31)
    given = operands(3, 40)
    simulator, host = (
        sparqle_tvm.compile(mod, "sparqle/edge", engine=e) for e in ("simulator", "host")
    )
    with recording_attention() as launches:
        found = simulator["main"](*given).numpy()
    assert np.array_equal(found, host["main"](*given).numpy())
    (launch,) = launches
    op = launch.program.header.op
    assert (op.key_planes, op.value_planes, op.key_bits, op.value_bits) == ("p-", "p", 8, 6)
    # What it says of a token is what lies in memory, and a pointer for 8 keys and for each value.
    cache, work = launch.result.cache, launch.result.work
    bytes_of = {
        what: (rows.begins[:, -1] - rows.begins[:, 0]).sum() / 40
        for what, rows in work.cache.items()
    }
    assert cache.key_bytes == bytes_of["key"] + 4 / 8
    assert cache.value_bytes == bytes_of["value"] + 2 * 4
    assert cache.plain_bytes == 2 * (16 + 12) and cache.encoded_elements == 3 * 16
    assert 0 < cache.live_keys <= 1


def test_plain_heads_may_be_said_one_by_one():
    """A letter for each head though all are plain: where heads are chosen by size."""
    report = PassReport()
    mod = module(1, 40, key_planes="--", value_planes="--")
    after = passes.OffloadAttention(EDGE, report=report)(mod)
    assert "R.sparqle.attention" not in after.script(), report.skipped


def test_the_profile_has_it(both):
    both[0]["main"](*operands(3, 9))
    profile = both[0].profile()
    (row,) = profile.rows()
    assert (row["label"], row["m"], row["n"], row["k"]) == ("att", 3, 96, 9)
    assert row["vector_busy"] > 0
    data = profile.to_json()
    assert data["totals"]["engines"]["VECTOR"]["busy_cycles"]["VEC.SMX"] > 0
    cache = data["ops"][0]["cache"]
    assert 0 < cache["live_keys"] == row["live_keys"] <= 1
    # Two key heads of 16 channels, in int8, and two float32 scales each.
    assert (cache["key_bytes"], cache["value_bytes"], cache["scale_bytes"]) == (32, 32, 16)
    assert (cache["elements"], cache["key_planes"], cache["encoded_elements"]) == (64, "-", 0)


def test_too_many_keys_or_rows_are_refused(both):
    with pytest.raises(ProgramError, match="compiled for at most 4096 rows and 32768 keys"):
        both[0]["main"](*operands(1, 33000))


@pytest.mark.parametrize(("tokens", "keys", "past"), [(5, 3, -2), (3, 0, -3)])
def test_rows_that_have_no_keys_are_refused(both, tokens, keys, past):
    """The host gives zeros to the rows that see no key."""
    given = operands(tokens, keys)
    assert not both[1]["main"](*given).numpy()[: tokens - keys].any()
    with pytest.raises(ProgramError, match=f"bound to {tokens} rows after {past}"):
        both[0]["main"](*given)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(both, which, value):
    given = operands(2, 4)
    given[which][0, 0, 3] = value
    with pytest.raises(QuantizationError, match=r"att: (queries|keys|values) hold NaN or infinity"):
        both[0]["main"](*given)


def test_what_stays_on_the_host_is_said():
    cases = {
        "programs know no mask but the causal one": module(mask=True),
        "do not fit the buffers": module(1, 60000, width=128),
    }
    for reason, mod in cases.items():
        report = PassReport()
        small = replace(EDGE, accumulator_buffer_bytes=65536, scratchpad=False)
        after = passes.OffloadAttention(small, report=report)(mod)
        tvm.ir.assert_structural_equal(after, mod)
        assert any(reason in str(skip) for skip in report.skipped), (reason, report.skipped)


def test_nothing_else_changes_and_twice_is_once():
    mod = module(2, 8)
    before = mod.script()
    once = passes.OffloadAttention(EDGE)(mod)
    assert mod.script() == before
    assert "sparqle.launch_attention" in once.script()
    assert "R.sparqle.attention" not in once.script()
    tvm.ir.assert_structural_equal(passes.OffloadAttention(EDGE)(once), once)


def test_what_is_left_dense_gives_the_same_bits_and_what_a_decode_step_meets():
    """At 70 rows the vector engine is the limit; one token after them is split."""
    given = operands(70, 70)
    forms = {}
    mod = module(key_planes="p")
    for name, planes in (("left", "cost"), ("split", "always")):
        executable = sparqle_tvm.compile(mod, "sparqle/edge", engine="simulator", planes=planes)
        with recording_attention() as launches:
            found = executable["main"](*given).numpy()
        forms[name] = found, launches[0], [s.reason for s in executable.report.skipped]
    (a, left, why), (b, split, nothing) = forms["left"], forms["split"]
    assert np.array_equal(a, b)
    assert [x.program.header.op.scheme for x in (left, split)] == ["dense", "sparqle"]
    assert any("left dense" in reason and "at 512 rows and 512 keys (" in reason for reason in why)
    assert not any("left dense" in reason for reason in nothing)
    one, other = left.result.work.last, split.result.work.last
    assert sorted(one) == sorted(other)
    for row, (bits, p) in one.items():
        assert np.array_equal(bits, other[row][0])
        assert np.array_equal(p, other[row][1])
