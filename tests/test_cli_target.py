"""`sparqle target`: the presets, every field, a file of one's own, and a check of it."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import pytest

from sparqle_tvm.cli import main
from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import PRESETS, Accelerator, field_texts, to_toml

EDGE = PRESETS["sparqle/edge"]
ASKED = ("rows=32", "cols=32", "lanes=8", "dram_bytes_per_cycle=25.6")


def printed(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_every_field_has_a_meaning_and_numbers_have_units():
    texts = field_texts()
    assert list(texts) == [field.name for field in dataclasses.fields(Accelerator)]
    for name, text in texts.items():
        assert text.meaning.endswith("."), name
        numeric = isinstance(getattr(EDGE, name), int | float)
        assert bool(text.unit) == (numeric and not isinstance(getattr(EDGE, name), bool)), name


def test_presets_in_a_line_each(capsys):
    assert main(["target", "list"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if "sparqle/" in line] == list(PRESETS)
    assert "32 x 32 x 16" in out
    assert main(["target", "list", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["targets"]
    assert found == [dataclasses.asdict(preset) for preset in PRESETS.values()]


def test_show_has_value_unit_and_meaning(capsys):
    assert main(["target", "show", "sparqle/mobile"]) == 0
    out = printed(capsys)
    for name, text in field_texts().items():
        assert name in out
        assert text.unit in out
    assert "dram_bytes_per_cycle 64.0 bytes/cycle DRAM bandwidth" in out
    assert main(["target", "show", "sparqle/mobile", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accelerator"] == dataclasses.asdict(PRESETS["sparqle/mobile"])
    assert found["fields"]["lanes"]["unit"] == "multipliers"


def test_a_new_file_is_what_was_asked_for_and_commented(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    assert main(["target", "new", str(path), "--set", *ASKED]) == 0
    assert "mine.toml" in printed(capsys)
    changes = {"rows": 32, "cols": 32, "lanes": 8, "dram_bytes_per_cycle": 25.6}
    assert Accelerator.from_toml(path) == dataclasses.replace(EDGE, name="mine", **changes)
    lines = path.read_text().splitlines()
    assert lines[2] == 'base = "sparqle/edge"'
    assert "rows = 32  # PEs" in lines
    assert max(map(len, lines)) <= 100
    for name, text in field_texts().items():
        if name != "name":
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
            assert lines[at - 1].startswith("# "), name
            assert text.unit in lines[at]
    # Out of a file of one's own: all fields stand in it, so that it needs no base.
    other = tmp_path / "other.toml"
    assert main(["target", "new", str(other), "--from", str(path), "--set", "memory=HBM2"]) == 0
    assert "base" not in tomllib.loads(other.read_text())
    expected = dataclasses.replace(Accelerator.from_toml(path), name="other", memory="HBM2")
    assert Accelerator.from_toml(other) == expected


@pytest.mark.parametrize("name", PRESETS)
def test_files_say_all_of_a_preset(tmp_path, name):
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(PRESETS[name]))
    assert Accelerator.from_toml(path) == dataclasses.replace(PRESETS[name], name="mine")


def test_what_a_file_does_not_say_is_that_of_its_base(tmp_path):
    path = tmp_path / "wide.toml"
    path.write_text('base = "sparqle/server"\nlanes = 64\n')
    assert Accelerator.from_target(str(path)) == dataclasses.replace(
        PRESETS["sparqle/server"], name="wide", lanes=64
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('base = "acme"', r"base = 'acme' is no preset; known: sparqle/edge"),
        ("base = 3", "base = 3 is no preset"),
        ("rows = 16", r"missing .*cols \(PEs\): PE columns.*sparqle/edge has 16.*`base ="),
        (
            'base = "sparqle/edge"\nrow = 3',
            r"unknown \['row'\]; did you mean rows \(PEs\): PE rows",
        ),
        ('base = "sparqle/edge"\nxyz = 3', r"unknown \['xyz'\]; known: name, rows"),
        (
            'base = "sparqle/edge"\nlanes = 0',
            r"lanes = 0 must be positive.*lanes \(multipliers\): Digit multipliers.*edge has 16",
        ),
        (
            'base = "sparqle/edge"\nscratchpad = 3',
            "must be true or false; scratchpad: True: the three buffers are one memory",
        ),
    ],
)
def test_an_error_says_what_a_field_is(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(TargetError, match=rf"mine\.toml: .*{message}"):
        Accelerator.from_toml(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "mine.txt"], "has to end in .toml"),
        (["new", "there.toml"], "is there already"),
        (["new", "mine.toml", "--set", "rows"], "'rows' is not of the form FIELD=VALUE"),
        (["new", "mine.toml", "--set", "rowz=3"], "unknown ['rowz']; did you mean rows (PEs)"),
        (["new", "mine.toml", "--set", "rows=many"], "rows = 'many' must be a number; rows (PEs)"),
        (["new", "mine.toml", "--from", "acme"], "unknown target 'acme'"),
        (["show", "acme"], "unknown target 'acme'"),
        (["check", "none.toml"], "none.toml cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("")
    assert main(["target", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "mine.toml").exists()


def test_check_says_what_fits_and_where_rates_balance(tmp_path, capsys):
    path, page = tmp_path / "mine.toml", tmp_path / "check.json"
    path.write_text(to_toml(EDGE.changed({"rows": 32, "cols": 32, "lanes": 8})))
    options = ["--model", "smollm2-135m", "--seq", "128", "--json", str(page)]
    assert main(["target", "check", str(path), *options]) == 0
    assert "Tiles chosen for the gate and up layers of SmolLM2-135M" in printed(capsys)
    found = json.loads(page.read_text())
    assert found["kind"] == "target check"
    rates = {rate["name"]: rate["value"] for rate in found["rates"]}
    # 32 x 32 x 8 products and 16 bytes in a cycle, at 1 GHz.
    assert rates["macs_per_cycle"] == 8192
    assert rates["dense_macs_per_second"] == 4096e9
    assert rates["dram_bytes_per_second"] == 16e9
    # A MAC is two products: 4096 MACs in the time of 16 bytes, or 32 int4 weights: 128 rows,
    # which are four groups of 32 PE rows; the next row begins a fifth.
    assert rates["balance_macs_per_byte"] == 256
    assert rates["balance_rows"] == 129
    # 1024 outputs in 2 * k / 8 cycles, drained 16 a cycle: k = 256.
    assert rates["drain_balance_k"] == 256
    # One memory of 2 MiB: rows of 576 bytes, channels of 288, sums of 4.
    fits = {name: value for name, value in rates.items() if name.endswith("_fits")}
    assert list(fits.values()) == [2**21 // 576, 2**21 // 288, 2**21 // 4]
    for limits in found["limits"].values():
        assert sum(limits.values()) == pytest.approx(1)
    for tile in found["tiles"]:
        assert 0 < tile["onchip_bytes"] <= EDGE.onchip_bytes
        assert tile["k"] == 576


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"dram_bytes_per_cycle": 1.0}, "waits for DRAM"),
        ({"drain_elements_per_cycle": 1}, "drain_elements_per_cycle"),
        ({"vector_lanes": 1, "vector_macs_per_cycle": 1}, "vector_lanes"),
        ({"dma_descriptor_cycles": 100_000}, "dma_descriptor_cycles"),
    ],
)
def test_a_starved_part_is_a_warning_that_names_its_field(change, warning):
    from sparqle_tvm.studies.target import check_target

    quiet = check_target(EDGE.changed({"dram_bytes_per_cycle": 64.0}), "smollm2-135m", seq=128)
    found = check_target(
        EDGE.changed({"dram_bytes_per_cycle": 64.0, **change}), "smollm2-135m", seq=128
    )
    assert any(warning in text for text in found.warnings), found.warnings
    assert not any(warning in text for text in quiet.warnings), quiet.warnings
