"""The accelerator's description: checked fields, presets, TVM targets and back."""

import dataclasses

import pytest

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import PRESETS, Accelerator, register_tags

EDGE = PRESETS["sparqle/edge"]


def test_presets_are_named_after_their_tags():
    assert list(PRESETS) == ["sparqle/edge", "sparqle/mobile", "sparqle/server"]
    assert all(name == accelerator.name for name, accelerator in PRESETS.items())


def test_derived_figures():
    assert EDGE.macs_per_cycle == 16 * 16 * 16
    assert EDGE.peak_macs_per_second == 4096e9
    assert EDGE.dram_bytes_per_second == 16e9
    assert EDGE.seconds(2_000_000) == pytest.approx(2e-3)
    assert EDGE.activation_bits == 8


@pytest.mark.parametrize("name", PRESETS)
def test_target_round_trip(name):
    from tvm.target import Target

    register_tags()
    register_tags()
    assert Accelerator.from_target(Target(name)) == PRESETS[name]
    assert Accelerator.from_target(name) is PRESETS[name]
    assert Accelerator.from_target(PRESETS[name]) is PRESETS[name]


def test_round_trip_of_an_own_accelerator_and_of_a_bound_function():
    import tvm
    from tvm.script import tirx as T

    own = dataclasses.replace(
        EDGE,
        name="mine",
        clock_ghz=1.25,
        float_bytes=4,
        msb_across_groups=False,
        memory="HBM2",
    )
    target = tvm.target.Target(own.to_target_config())

    @T.prim_func(s_tir=True)
    def main(a: T.Buffer((4,), "int32")):
        for i in range(4):
            with T.sblock("b"):
                a[i] = 0

    bound = main.with_attr("target", target)
    assert Accelerator.from_target(bound.attrs["target"]) == own


def test_own_tag_is_found_by_name():
    from tvm.target import register_tag

    own = dataclasses.replace(EDGE, name="acme/npu", rows=8)
    register_tag("acme/npu", own.to_target_config(), override=True)
    assert Accelerator.from_target("acme/npu") == own


def test_unknown_name_lists_the_known():
    with pytest.raises(TargetError, match=r"'sparqle/nope'.*sparqle/edge.*sparqle/server"):
        Accelerator.from_target("sparqle/nope")


def test_other_kind_is_refused():
    import tvm

    with pytest.raises(TargetError, match="not a sparqle accelerator"):
        Accelerator.from_target(tvm.target.Target("c"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature.rows": None}, r"missing \['rows'\]"),
        ({"feature.rowz": 3}, r"unknown \['rowz'\]"),
        ({"feature.rows": 0}, "rows = 0 must be positive"),
        ({"feature.memory": "tape"}, "memory = 'TAPE' must be one of"),
    ],
)
def test_wrong_features(change, message):
    from tvm.target import Target

    config = {**EDGE.to_target_config(), **change}
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(TargetError, match=message):
        Accelerator.from_target(Target(config))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rows", -1, "rows = -1 must be positive"),
        ("cols", 2.5, "cols = 2.5 must be a whole number"),
        ("lanes", "16", "lanes = '16' must be a number"),
        ("lanes", True, "lanes = True must be a number"),
        ("clock_ghz", float("nan"), "clock_ghz = nan must be positive and finite"),
        ("dma_descriptor_cycles", -1, "dma_descriptor_cycles"),
        ("digit_bits", 3, r"digit_bits = 3 must be one of \(2, 4, 8\)"),
        ("float_bytes", 8, "float_bytes = 8 must be one of"),
        ("msb_across_groups", "yes", "must be true or false"),
        ("name", "", "must be a non-empty string"),
        ("memory", "tape", "memory = 'TAPE' must be one of .*'LPDDR4', 'LPDDR5', 'DDR4', 'HBM2'"),
        ("memory", 4, "memory = 4 must be a non-empty string"),
        ("activation_buffer_bytes", 575, "use at least 576"),
        ("weight_buffer_bytes", 511, "use at least 512"),
        ("accumulator_buffer_bytes", 4095, "use at least 4096"),
    ],
)
def test_wrong_field_is_named(field, value, message):
    with pytest.raises(TargetError, match=message):
        dataclasses.replace(EDGE, **{field: value})


def test_presets_have_their_memory_and_any_case_will_do():
    found = {name: accelerator.memory for name, accelerator in PRESETS.items()}
    assert found == {
        "sparqle/edge": "LPDDR4",
        "sparqle/mobile": "LPDDR5",
        "sparqle/server": "HBM2",
    }
    assert dataclasses.replace(EDGE, memory="hbm2").memory == "HBM2"


def test_descriptors_may_be_free():
    assert dataclasses.replace(EDGE, dma_descriptor_cycles=0).dma_descriptor_cycles == 0


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EDGE.rows = 3


def write_toml(tmp_path, **change):
    """The edge preset as a file, with fields changed, or left out if None."""
    values = {**dataclasses.asdict(EDGE), **change}
    shown = {
        name: str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        for name, value in values.items()
        if value is not None
    }
    path = tmp_path / "mine.toml"
    path.write_text("".join(f"{name} = {text}\n" for name, text in shown.items()))
    return path


def test_a_file_describes_an_accelerator(tmp_path):
    path = write_toml(tmp_path)
    assert Accelerator.from_toml(path) == EDGE
    assert Accelerator.from_target(str(path)) == EDGE
    # What has a default may be left out; the name is that of the file.
    short = write_toml(tmp_path, name=None, float_bytes=None, rows=32, memory="ddr4")
    expected = dataclasses.replace(EDGE, name="mine", rows=32, memory="DDR4")
    assert Accelerator.from_toml(short) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, r"missing \['rows'\]"),
        ({"rowz": 3}, r"unknown \['rowz'\]"),
        ({"cols": -16}, "cols = -16 must be positive"),
        ({"lanes": 0}, "lanes = 0 must be positive"),
        ({"dram_bytes_per_cycle": 0.0}, "dram_bytes_per_cycle = 0.0 must be positive"),
        ({"clock_ghz": "fast"}, "clock_ghz = 'fast' must be a number"),
        ({"rows": 1.5}, "rows = 1.5 must be a whole number"),
        ({"digit_bits": 3}, "digit_bits = 3 must be one of"),
        ({"memory": "tape"}, "memory = 'TAPE' must be one of"),
        ({"weight_buffer_bytes": 100}, "weight_buffer_bytes = 100 is too small: two tiles"),
        ({"accumulator_buffer_bytes": 4095}, "accumulator_buffer_bytes = 4095 is too small"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_field(tmp_path, change, message):
    path = write_toml(tmp_path, **change)
    with pytest.raises(TargetError, match=rf"accelerator file .*mine\.toml: .*{message}"):
        Accelerator.from_target(str(path))


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(TargetError, match=r"none\.toml cannot be read: No such file"):
        Accelerator.from_target(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("rows = = 3\n")
    with pytest.raises(TargetError, match=r"bad\.toml is no TOML: "):
        Accelerator.from_toml(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff\xfe'\n")
    with pytest.raises(TargetError, match=r"bytes\.toml is not UTF-8 text: "):
        Accelerator.from_toml(tmp_path / "bytes.toml")
