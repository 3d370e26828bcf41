"""The array's Verilog in its own testbench, in Icarus Verilog, and what the testbench refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from sparqle_tvm.cli import main
from sparqle_tvm.numerics import encode
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.rtl.shape import ArrayShape

pytest.importorskip("amaranth")
pytest.importorskip("pyosys")
if shutil.which("iverilog") is None:
    pytest.skip("no Icarus Verilog (apt-get install iverilog)", allow_module_level=True)

from sparqle_tvm.target.rtl import export

SHAPE = ArrayShape.of(
    replace(PRESETS["sparqle/edge"], name="small", rows=4, cols=3, lanes=8), columns=32
)


def simulate(folder: Path) -> str:
    command = ["iverilog", "-g2012", "-o", "array.vvp", export.TESTBENCH, export.ARRAY]
    subprocess.run(command, cwd=folder, check=True)
    return subprocess.run(
        ["vvp", "array.vvp"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three K chunks, the last one shorter; two slices of a weight."""
    folder = tmp_path_factory.mktemp("verilog")
    rng = np.random.default_rng(3)
    q = np.where(rng.random((4, 84)) < 0.3, rng.integers(-128, 128, (4, 84)), 3).astype(np.int8)
    weights = rng.integers(-128, 128, (3, 84))
    tiles = export.tiles_of(encode(q), weights, 2, SHAPE)
    sums = q.astype(np.int64) @ weights.T
    files = {export.ARRAY: export.verilog(SHAPE), **export.testbench(SHAPE, tiles, sums)}
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_the_testbench_passes(folder: Path):
    assert simulate(folder).splitlines()[-1].startswith("PASS: 6 tiles")


@pytest.mark.parametrize(
    ("name", "says"), [("cycles.hex", "cycles, not"), ("sums.hex", "sums differ")]
)
def test_the_testbench_sees_one_wrong_bit(folder: Path, tmp_path: Path, name: str, says: str):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    first, *rest = (tmp_path / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join([f"{int(first, 16) ^ 1:x}", *rest]) + "\n")
    said = simulate(tmp_path)
    assert says in said
    assert "FAIL: 1 errors" in said


def accelerator_file(folder: Path, **changes: int) -> Path:
    """A small accelerator as users describe it."""
    fields = {**asdict(PRESETS["sparqle/edge"]), "name": "mine", "rows": 4, "cols": 4, "lanes": 8}
    lines = [f"{k} = {json.dumps(v)}" for k, v in {**fields, **changes}.items()]
    (folder / "mine.toml").write_text("\n".join(lines) + "\n")
    return folder / "mine.toml"


@pytest.mark.slow
@pytest.mark.parametrize("digit_bits", [2, 4])
def test_the_command_writes_a_testbench_of_a_real_layer(
    digit_bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = accelerator_file(tmp_path, digit_bits=digit_bits)
    out = tmp_path / "out"
    assert main(["rtl", "--target", str(target), "--out", str(out), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in out.iterdir()) == found["files"]
    # 576 columns in chunks of 64, as many slices as 4 bits have digits.
    assert found["tiles"] == 9 * 4 // digit_bits
    assert simulate(out).splitlines()[-1] == f"PASS: {found['tiles']} tiles"


def test_what_cannot_be_built_is_refused_and_nothing_written(tmp_path: Path, capsys):
    target, out = accelerator_file(tmp_path, lanes=12), tmp_path / "out"
    assert main(["rtl", "--target", str(target), "--out", str(out)]) == 2
    assert "power of two" in capsys.readouterr().err
    assert not out.exists() or not any(out.iterdir())


def test_the_readme_has_no_gaps():
    text = export.readme(SHAPE, "a layer")
    assert "{" not in text
    assert "4 PE rows, 3 PE columns, 8 lanes of 4-bit digits" in text
