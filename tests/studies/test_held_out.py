"""`sparqle run` with a calibration, on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_files import write_prose

from sparqle_tvm.calibration import Budget
from sparqle_tvm.cli import main
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.results.losses import Loss, RunLoss
from sparqle_tvm.studies.run import run_model


@pytest.fixture(scope="module")
def saved(tiny):
    path = tiny.folder / "run.npz"
    tiny.calibration.save(path)
    return path


def test_a_run_with_factors_is_exact_and_tells_its_loss(tiny, saved, tmp_path):
    write_prose(tmp_path)
    result = run_model(
        tiny.folder / "tiny.gguf",
        tmp_path / "prose.txt",
        40,
        calibration=saved,
        budget=Budget("sparsity", 0.8),
        loss_tokens=60,
        progress=False,
    )
    assert result.exact  # simulated programs against the plain int8 form with the same factors
    assert result.prefill.msb_sparsity > 0.5  # 0.15 without factors
    loss = result.loss
    assert loss.budget == "MSB sparsity 80.0%" and loss.encodings == 8
    assert loss.calibration_text == "prose" and loss.text.endswith("prose.txt")
    assert loss.increase.tokens == 59 and loss.increase.kl_nats > 0
    assert result.perplexity["sparqle"] != result.perplexity["int8"]
    assert result.to_json()["loss"]["increase"]["tokens"] == 59


def test_budgets_of_the_command_line(saved, monkeypatch, capsys):
    from run_result_helper import run_result

    seen = []
    increase = Loss(9, 2.0, 2.1, 0.05, 0.0105, 0.02, 0.003)
    loss = RunLoss("perplexity +1 % at most", 0.9, 8, "seen", "unseen", increase)

    def run(*_, **named):
        seen.append((named["calibration"], named["budget"], named["loss_tokens"]))
        return replace(run_result(), loss=loss)

    monkeypatch.setattr("sparqle_tvm.studies.run.run_model", run)
    command = ["run", "--calibration", "c.npz"]
    assert main([*command, "--max-perplexity-increase", "1%"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "+5.00 % ± 1.05 %" in printed and "measured on unseen" in printed
    assert main([*command, "--target-msb-sparsity", "0.85", "--loss-tokens", "99"]) == 0
    assert main([*command, "--loss", "none"]) == 0
    assert main(command) == 0
    assert seen == [
        ("c.npz", Budget("perplexity", 0.01), 2048),
        ("c.npz", Budget("sparsity", 0.85), 99),
        ("c.npz", Budget(), 2048),
        ("c.npz", None, 2048),
    ]
    assert main([*command, "--max-perplexity-increase=-1%"]) == 2
    assert "0 or more" in capsys.readouterr().err


def test_a_budget_needs_a_calibration():
    with pytest.raises(InvalidArgumentError, match="needs a calibration"):
        run_model(budget=Budget("sparsity", 0.8), progress=False)
