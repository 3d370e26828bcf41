"""Points of a sweep: grids, lists, axes of the command line, and what is refused."""

import re

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.studies.sweep import Sweep, parse_axis, read_sweep


def write(tmp_path, text: str):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_grid_has_every_combination_with_the_last_axis_fastest(tmp_path):
    text = '[fixed]\nmodel = "smollm2"\n[grid]\nseq = [1, 2]\nrows = [16, 32, 64]\n'
    sweep = read_sweep(write(tmp_path, text))
    expected = [
        {"model": "smollm2", "seq": seq, "rows": rows} for seq in (1, 2) for rows in (16, 32, 64)
    ]
    assert list(sweep.points) == expected
    assert sweep.names == ("model", "seq", "rows")


def test_list_of_points_takes_what_is_fixed_unless_it_says_otherwise(tmp_path):
    text = "[fixed]\nseq = 8\nbatch = 2\n[[points]]\nrows = 16\n[[points]]\nseq = 9\n"
    sweep = read_sweep(write(tmp_path, text))
    assert list(sweep.points) == [
        {"seq": 8, "batch": 2, "rows": 16},
        {"seq": 9, "batch": 2},
    ]


def test_digest_tells_points_and_their_order_apart():
    one, two = {"seq": 1}, {"seq": 2}
    digests = {Sweep(points).digest for points in ((one,), (one, two), (two, one))}
    assert len(digests) == 3
    assert Sweep(({"seq": 1},)).digest == Sweep((one,)).digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seq=128,512", ("seq", [128, 512])),
        ("model=smollm2", ("model", ["smollm2"])),
        ("msb_sparsity=0.5,measured", ("msb_sparsity", [0.5, "measured"])),
        ("msb_sparsity=0:0.9:4", ("msb_sparsity", [0.0, 0.3, 0.6, 0.9])),
        ("rows=16:64:4", ("rows", [16, 32, 48, 64])),
    ],
)
def test_axis_of_the_command_line(text, expected):
    assert parse_axis(text) == expected


@pytest.mark.parametrize("text", ["seq", "seq=", "=1", "seq=1:2", "seq=1:2:1", "seq=a:b:3"])
def test_malformed_axis_is_refused(text):
    with pytest.raises(InvalidArgumentError, match=re.escape(repr(text))):
        parse_axis(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[grid]\nseqq = [1]\n", "'seqq' is unknown; did you mean seq? known: "),
        ("[grid]\nseq = [1.5]\n", "seq = 1.5 is no whole number"),
        ("[grid]\nmodel = [7]\n", "model = 7 is no word"),
        ('[grid]\nrows = ["many"]\n', "rows = 'many' is no whole number or number or"),
        ("[grid]\nseq = []\n", "seq has no values"),
        ("[grid]\nseq = 1\n", "Expected `array`, got `int` - at `$.grid[...]`"),
        ("[grid]\nseq = [[1]]\n", "got `array` - at `$.grid[...][0]`"),
        ("[grid]\nmsb_sparsity = [nan]\n", "nan is no finite number"),
        ("[fixed]\nseq = 1\n[grid]\nseq = [1]\n", "both fixed and an axis"),
        ("[fixed]\nseq = 1\n", "either [grid] or [[points]]"),
        ("[grid]\nseq = [1]\n[[points]]\nseq = 1\n", "either [grid] or [[points]]"),
        ("points = 3\n", "Expected `array | null`, got `int` - at `$.points`"),
        ("points = []\n", "no point"),
        ("[[points]]\nseq = 1\n[more]\n", "$.more is unknown"),
        ("[grid]\nseq = [1\n", "no TOML"),
        (f"[grid]\nseq = {list(range(2000))}\nbatch = {list(range(2000))}\n", "4000000 points"),
    ],
)
def test_files_that_are_refused_name_the_file(tmp_path, text, reason):
    path = write(tmp_path, text)
    with pytest.raises(InvalidArgumentError, match=re.escape(reason)) as caught:
        read_sweep(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_sweep(tmp_path / "none.toml")


def test_both_phases_are_an_axis():
    sweep = Sweep.grid({"seq": [8, 16]}, {"phase": "both", "batch": 2})
    assert [(p["phase"], p["seq"], p["batch"]) for p in sweep.points] == [
        (phase, seq, 2) for phase in ("prefill", "decode") for seq in (8, 16)
    ]
