"""What `sparqle calibrate`, `pareto` and `tune` print: narrow enough, with the figures."""

import io

import pytest
from rich.console import Console

from sparqle_tvm.report.calibration import calibration_document, pareto_document
from sparqle_tvm.report.tuning import tuning_document
from sparqle_tvm.report.writers import print_document
from sparqle_tvm.results.calibration import CalibrationSummary, EncodingSummary, MeasuredChoice
from sparqle_tvm.results.losses import Loss, ParetoPoint, ParetoResult
from sparqle_tvm.results.tuning import TuningSummary

LOSS = Loss(4088, 15.156, 15.497, 0.0224659, 0.0072381, 0.08988, 0.00317)

POINT = ParetoPoint(
    budget="perplexity +0.25 % at most",
    msb_sparsity=0.9016,
    mma_cycles=15139644,
    dense_cycles=28547107,
    mma_reduction=0.4309,
    cycles_reduction=0.2103,
    model_cycles_reduction=0.1009,
    energy_joules=0.0507,
    energy_reduction=0.1302,
    heldout=LOSS,
    calibration=LOSS,
)
PARETO = ParetoResult("Smollm2", "sparqle/edge", "weights", 512, 4096, 2048, "a", "b", (POINT,))
CHOICE = MeasuredChoice(
    **vars(LOSS), importance="weights", expected_loss=0.0218, msb_sparsity=0.938
)
ENCODING = EncodingSummary("blk_0_attn_q", {"signed": 0.8, "unsigned": 0.9}, "unsigned", 1.0)
CALIBRATION = CalibrationSummary(
    "Smollm2", "f" * 64, "prose", 1024, 0.69, False, (ENCODING,), (CHOICE,)
)


def printed(document, width: int) -> str:
    stream = io.StringIO()
    print_document(document, Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "too wide" not in text and "…" not in text
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100])
def test_pareto(width):
    text = printed(pareto_document(PARETO), width)
    for figure in ("90.2 %", "+2.25 %", "± 0.72 %", "0.0899", "43.1 %", "21.0 %", "13.0 %", "4096"):
        assert figure in text


@pytest.mark.parametrize("width", [80, 100])
def test_calibration(width):
    text = printed(calibration_document(CALIBRATION, "calib.npz"), width)
    for words in ("unsigned window better for 1", "93.8 %", "0.0218", "+2.25 %", "to calib.npz"):
        assert words in text


def schedule(cycles: float, energy_pj: float) -> dict[str, object]:
    return {"m": 512, "n": 1536, "k": 1536, "cycles": cycles, "energy_pj": energy_pj}


@pytest.mark.parametrize("width", [80, 100])
def test_tuning(width):
    data = {
        "settings": {"objective": "latency", "accelerator": {"name": "sparqle/edge"}},
        "work_dir": "folder",
        "tasks": [
            {
                "name": "512 x 49152 x 1536 (dense)",
                "labels": ["output"],
                "weight": 60,
                "trials": 3,
                "failures": 0,
                "message": "the default stays",
                "default": schedule(190865, 1e6),
                "best": schedule(180000, 1.1e6),
            }
        ],
        "total": {
            "default": {"cycles": 2000, "energy_pj": 4e6},
            "best": {"cycles": 1900, "energy_pj": 4.2e6},
        },
    }
    text = printed(tuning_document(TuningSummary.from_json(data)), width)
    for words in (
        "tuned for latency on sparqle/edge",
        "180,000 \N{MINUS SIGN}5.7 % +10.0 %",
        "512 x 1536 x 1536",
        "(dense): the default stays",
        "2,000 -> 1,900 cycles (\N{MINUS SIGN}5.0 %), 4.00 µJ -> 4.20 µJ (+5.0 %)",
        "--database folder",
    ):
        assert words in text
