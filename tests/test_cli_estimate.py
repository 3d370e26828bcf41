"""`sparqle estimate`: what it prints, writes and refuses."""

from __future__ import annotations

import json

import pytest

from sparqle_tvm.cli import main
from sparqle_tvm.studies.estimate import estimate_around
from sparqle_tvm.target.cost.energy_table import energy_table

SMALL = ["estimate", "--model", "smollm2-135m", "--seq", "64"]


def test_prints_tables(capsys):
    assert main([*SMALL, "--phase", "decode", "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "SmolLM2-135M: decode, 1 token after 64, 2 sequences",
        "table 7nm + LPDDR4",
        "(transferred)",
        "Cost by scheme",
        "What limits the time",
        "Energy of the whole model by component, 7nm + LPDDR4",
        "goes to waiting for weights: split activations cannot help there",
        "KV cache",
        "a4: activations of 4 bits",
        "Not checked against a copy of their source: on-chip memory, 8 KiB",
    ):
        assert text in " ".join(printed.split()), text
    assert max(map(len, printed.splitlines())) <= 100
    assert "…" not in printed


def test_json_is_that_of_the_function(tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--node", "45nm", "--memory", "ddr4", "--msb-sparsity", "0.8", "--kv-bits", "4"]
    assert main([*SMALL, *options, "--target", "sparqle/mobile", "--json", str(out)]) == 0
    expected = estimate_around(
        "smollm2-135m",
        "prefill",
        seq=64,
        msb_sparsity=0.8,
        target="sparqle/mobile",
        table=energy_table("45nm", "ddr4"),
        kv_bits=4,
    )
    assert json.loads(out.read_text()) == json.loads(json.dumps(expected.to_json()))
    assert "45nm + DDR4" in capsys.readouterr().out


def test_json_to_standard_output_is_nothing_but_json(capsys):
    assert main([*SMALL, "--json", "-", "--node", "45nm"]) == 0
    data = json.loads(capsys.readouterr().out)
    # The memory is that of the preset.
    assert (data["table"]["node"], data["table"]["memory"]) == ("45nm", "lpddr4")


def test_an_accelerator_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(
        "rows = 8\ncols = 8\nlanes = 16\nclock_ghz = 0.5\ndram_bytes_per_cycle = 8\n"
        "dma_descriptor_cycles = 0\nactivation_buffer_bytes = 65536\n"
        "weight_buffer_bytes = 65536\naccumulator_buffer_bytes = 65536\n"
        "drain_elements_per_cycle = 8\nvector_lanes = 32\nvector_macs_per_cycle = 64\n"
    )
    assert main([*SMALL, "--target", str(path)]) == 0
    assert "mine: 8x8 PEs" in capsys.readouterr().out
    path.write_text(path.read_text() + 'digit_bits = 8\nmemory = "HBM2"\n')
    assert main([*SMALL, "--target", str(path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "table 7nm + HBM2",
        "8-bit lanes",
        "dense split native a8",
        "a8: activations of 8 bits",
    ):
        assert text in printed
    assert "of 16-bit activations" in printed
    assert "a4" not in printed


def test_more_tokens_than_positions_are_said(capsys):
    options = ["--model", "bitnet-3b", "--phase", "decode", "--seq", "2048"]
    assert main(["estimate", *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "beyond the model's 2,048 positions" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "gpt-5"], "unknown model 'gpt-5'"),
        (["--phase", "train"], "phase 'train' is unknown; known: prefill, decode, both"),
        (["--seq", "0"], "seq = 0"),
        (["--node", "3nm"], "unknown node '3nm'"),
        (["--memory", "tape"], "unknown memory 'tape'"),
        (["--kv-bits", "3"], "kv_bits = 3 must be one of 4, 8, 16"),
        (["--msb-sparsity", "-0.5"], "must be from 0 to 1"),
        (["--msb-sparsity", "none.json"], "nor a JSON file"),
        (["--target", "none.toml"], "none.toml cannot be read"),
        (["--json", "no/such/folder/out.json"], "cannot be written"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(capsys, change, message):
    assert main([*SMALL, *change]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("sparqle: error: ")
    assert message in line
    assert captured.out == ""
