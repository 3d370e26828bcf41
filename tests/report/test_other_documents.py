"""What `sparqle calibrate`, `pareto` and `tune` print: narrow enough, with the figures."""

import io
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from rich.console import Console

from sparqle_tvm.report.calibration import calibration_document, pareto_document
from sparqle_tvm.report.tuning import tuning_document
from sparqle_tvm.report.writers import print_document
from sparqle_tvm.results.calibration import CalibrationSummary, EncodingSummary, MeasuredChoice
from sparqle_tvm.results.losses import Loss, ParetoPoint, ParetoResult

LOSS = Loss(4088, 15.156, 15.497, 0.0224659, 0.0072381, 0.08988, 0.00317)


def printed(document, width: int) -> str:
    stream = io.StringIO()
    print_document(document, Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "too wide" not in text and "…" not in text
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100])
def test_pareto(width):
    point = ParetoPoint(
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
    result = ParetoResult("Smollm2", "sparqle/edge", "weights", 512, 4096, 2048, "a", "b", (point,))
    text = printed(pareto_document(result), width)
    for figure in ("90.2 %", "+2.25%", "± 0.72%", "0.0899", "43.1 %", "21.0 %", "13.0 %", "4096"):
        assert figure in text


@pytest.mark.parametrize("width", [80, 100])
def test_calibration(width):
    choice = MeasuredChoice(
        **vars(LOSS), importance="weights", expected_loss=0.0218, msb_sparsity=0.938
    )
    encoding = EncodingSummary("blk_0_attn_q", {"signed": 0.8, "unsigned": 0.9}, "unsigned", 1.0)
    found = CalibrationSummary(
        "Smollm2", "f" * 64, "prose", 1024, 0.69, False, (encoding,), (choice,)
    )
    text = printed(calibration_document(found, "calib.npz"), width)
    for words in ("unsigned window better for 1", "93.8 %", "0.0218", "+2.25%", "to calib.npz"):
        assert words in text


@dataclass
class Cost:
    """Cycles and picojoules, as `tuning.measure.Measurement`."""

    cycles: float
    energy_pj: float


@dataclass
class Tuned:
    """What `tuning_document` reads of a `TuningResult`; the real one needs MetaSchedule."""

    tasks: tuple
    work_dir: str = "folder"
    settings: object = field(
        default_factory=lambda: SimpleNamespace(
            objective="latency", accelerator=SimpleNamespace(name="sparqle/edge")
        )
    )

    def total(self, which):
        return Cost(2000, 4e6) if which == "default" else Cost(1900, 4.2e6)


@pytest.mark.parametrize("width", [80, 100])
def test_tuning(width):
    found = SimpleNamespace(
        task=SimpleNamespace(name="512 x 49152 x 1536 (dense)", weight=60),
        default_cost=Cost(190865, 1e6),
        best_cost=Cost(180000, 1.1e6),
        best=SimpleNamespace(tile=(512, 1536, 1536)),
        message="the default stays",
    )
    text = printed(tuning_document(Tuned((found,))), width)
    for words in (
        "tuned for latency on sparqle/edge",
        "180,000 -5.7% +10.0%",
        "512 x 1536 x 1536",
        "(dense): the default stays",
        "2,000 -> 1,900 cycles (-5.0%), 4.00 µJ -> 4.20 µJ (+5.0%)",
        "--database folder",
    ):
        assert words in text
