"""Loss over what is saved."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

from sparqle_tvm.escaping import visible
from sparqle_tvm.files import replacing
from sparqle_tvm.report.pictures import require_picture_name
from sparqle_tvm.results.losses import ParetoResult


def draw_pareto(result: ParetoResult) -> Figure:
    """Draw perplexity and KL over saved cycles of the array, and over saved energy."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    columns = (
        ("array cycles saved (%)", [100 * p.mma_reduction for p in result.points]),
        ("energy of dense layers saved (%)", [100 * p.energy_reduction for p in result.points]),
    )
    texts = (
        ("held out", "o-", [p.heldout for p in result.points]),
        ("calibration text", "s--", [p.calibration for p in result.points]),
    )
    for (label, x), (upper, lower) in zip(columns, axes.T, strict=True):
        for name, style, losses in texts:
            for axis, key, scale in ((upper, "perplexity_increase", 100), (lower, "kl_nats", 1)):
                y, error = (
                    [scale * getattr(loss, field) for loss in losses]
                    for field in (key, f"{key}_error")
                )
                axis.errorbar(x, y, error, fmt=style, capsize=3, label=name)
        lower.set_xlabel(label)
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("perplexity above int8 (%)")
    axes[1][0].set_ylabel("KL to int8 (nats)")
    axes[0][0].legend()
    title = visible(f"{result.model_name} on {result.accelerator}, one standard error")
    figure.suptitle(title, parse_math=False)
    return figure


def write_pareto(result: ParetoResult, path: str | os.PathLike[str]) -> None:
    """Draw it into a PNG, SVG or PDF file.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written, or its ending is not known.
    """
    require_picture_name(path)
    figure = draw_pareto(result)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
