"""Calibrations and Pareto curves as tables, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.loss import LossIncrease
from sparqle_tvm.numerics.window import PLAIN, WINDOWS
from sparqle_tvm.studies.pareto import ParetoResult


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage with its unit."""
    return f"{100 * value:.{digits}f} %"


def increase_text(increase: LossIncrease) -> str:
    """Increase of perplexity with its standard error."""
    return f"{100 * increase.ratio:+.2f} ± {100 * increase.ratio_error:.2f} %"


def calibration_json(calibration: Calibration) -> dict[str, Any]:
    """The facts of a calibration without its arrays."""
    return {
        "model": calibration.model_name,
        "fingerprint": calibration.fingerprint,
        "text": calibration.text_name,
        "tokens": calibration.tokens,
        "msb_sparsity": calibration.msb_sparsity,
        "fisher": calibration.has_fisher,
        "encodings": [
            {
                "label": e.label,
                "msb_sparsity": {w: e.msb_sparsity(w) for w in WINDOWS},
                "window": calibration.windows()[e.label],
                "largest": e.largest,
            }
            for e in calibration
        ],
        "measured": [
            {
                "importance": m.importance,
                "expected_loss": m.expected,
                "msb_sparsity": m.msb_sparsity,
                **m.increase.to_json(),
            }
            for m in calibration.measured
        ],
    }


def print_calibration(calibration: Calibration, path: str) -> None:
    """Print what was collected, and what choices of factors lost on calibration text."""
    console = Console()
    unsigned = sum(window == PLAIN for window in calibration.windows().values())
    console.print(
        f"{calibration.model_name}: {len(calibration.encodings)} encodings over "
        f"{calibration.tokens} tokens of {calibration.text_name}; MSB sparsity "
        f"{percent(calibration.msb_sparsity)}, unsigned window better for {unsigned}"
    )
    table = Table(title="Choices of scale factors, measured on calibration text")
    for name in ("MSB sparsity", "expected loss", "perplexity", "KL to int8"):
        table.add_column(name, justify="right")
    for m in calibration.measured:
        table.add_row(
            percent(m.msb_sparsity),
            f"{m.expected:.4f}",
            increase_text(m.increase),
            f"{m.increase.kl:.4f} ± {m.increase.kl_error:.4f}",
        )
    console.print(table)
    console.print(f"written to {path}")


def print_pareto(result: ParetoResult) -> None:
    """Print a row for every budget."""
    console = Console()
    console.print(
        f"{result.model_name} on {result.accelerator}: {result.prefill_tokens} tokens of prefill; "
        f"loss against int8 on {result.heldout_tokens} tokens that calibration did not see and "
        f"{result.calibration_tokens} that it saw"
    )
    table = Table(
        title="Loss against cycles and energy (saved: share of the dense baseline's)",
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("budget")
    for name in (
        "zero\nMSBs",
        "perplexity\nheld out",
        "KL\nheld out",
        "perplexity\nseen text",
        "array\nsaved",
        "dense\nsaved",
        "energy\nsaved",
    ):
        table.add_column(name, justify="right", min_width=max(map(len, name.split("\n"))))
    for p in result.points:
        table.add_row(
            p.budget,
            percent(p.msb_sparsity),
            increase_text(p.heldout),
            f"{p.heldout.kl:.4f} ± {p.heldout.kl_error:.4f}",
            increase_text(p.calibration),
            percent(p.mma_reduction),
            percent(p.cycles_reduction),
            percent(p.energy_reduction),
        )
    console.print(table)
