"""A picture of one run: what each engine did when, and what it waited for. Needs matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.simulator import SimResult
from sparqle_tvm.target.simulator.counts import REASONS
from sparqle_tvm.target.simulator.timeline import stretches

# By `Instruction.ROLE`. Okabe and Ito's colours, which people with any colour vision tell apart.
_COLORS = {
    "activations": "#56B4E9",
    "weights": "#E69F00",
    "parameters": "#F0E442",
    "LSB pass": "#0072B2",
    "MSB pass": "#D55E00",
    "drain": "#009E73",
    "store": "#CC79A7",
    "vector": "#000000",
}
_OTHER = "0.5"
_DARK = ("#0072B2", "#D55E00", "#009E73", "#000000")
_STALL = "stall"
_STALL_STYLE: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.75", "hatch": "////"}
# More spans than this cannot be told apart; then a track shows shares of as many intervals.
_MAX_SPANS = 400
# A text needs this share of the width per character.
_CHARACTER = 0.0085


@dataclass(frozen=True)
class Span:
    """Cycles that an engine spends on one kind of instruction, or on waiting.

    Attributes
    ----------
    family : str
        Kind of instruction, or ``"stall"``.
    name : str
        Mnemonic, or the reason of the stall.
    start, end : int
        Cycles.
    """

    family: str
    name: str
    start: int
    end: int


def draw_timeline(
    result: SimResult, *, title: str = "", cycles: tuple[int, int] | None = None
) -> Figure:
    """Draw one track per engine: coloured while it works, hatched while it waits.

    A track with too many changes to be seen shows, over time, which share of it each kind of
    instruction takes; `cycles` brings the single instructions back.

    Parameters
    ----------
    result : SimResult
        The run.
    title : str
        What ran.
    cycles : tuple of int, optional
        Begin and end of the part to draw; by default all of it.

    Raises
    ------
    InvalidArgumentError
        If `cycles` is no part of the run.
    """
    begin, end = cycles or (0, result.total_cycles)
    if not 0 <= begin < end <= result.total_cycles:
        raise InvalidArgumentError(
            f"cycles {begin} to {end} are no part of a run of {result.total_cycles} cycles"
        )
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots()
    seen: set[str] = set()
    for engine in Engine:
        spans = spans_of(result, engine, begin, end)
        families = {span.family for span in spans}
        if len(spans) > _MAX_SPANS:
            families.discard(_STALL)
            _draw_shares(axes, -int(engine), spans, begin, end)
        else:
            _draw_spans(axes, -int(engine), spans, end - begin)
        seen |= families
    axes.set_yticks([-int(engine) for engine in Engine])
    axes.set_yticklabels([f"{e.name}\n{_busy_share(result, e):.0%} busy" for e in Engine])
    axes.set_xlim(begin, end)
    axes.set_xlabel("cycle")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{title} - {result.total_cycles:,} cycles".removeprefix(" - "), fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(handles=_legend(seen), loc="outside lower center", ncols=8, fontsize=8)
    return figure


def spans_of(result: SimResult, engine: Engine, begin: int, end: int) -> list[Span]:
    """What an engine did from cycle `begin` to `end`, in order, without gaps."""
    found, spans = stretches(result), []
    mine = (found.engine == engine) & (found.end > begin) & (found.start < end)
    for step, _, start, stop, reason in zip(*(c[mine].tolist() for c in found), strict=True):
        if reason >= 0:
            family, name = _STALL, REASONS[reason]
        else:
            instruction = result.bound.instruction_at(step)
            name = instruction.MNEMONIC
            family = instruction.ROLE or name
        spans.append(Span(family, name, max(start, begin), min(stop, end)))
    return _joined(spans)


def shares_of(spans: list[Span], edges: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Share of each interval that each family of spans takes.

    Parameters
    ----------
    spans : list of Span
        In order of time.
    edges : ndarray of float64, shape (intervals + 1,)
        Cycles, rising.

    Returns
    -------
    dict of str to ndarray of float64, shape (intervals,)
        They add up to at most 1.
    """
    shares = {}
    for family in dict.fromkeys(span.family for span in spans):
        mine = [span for span in spans if span.family == family]
        times = np.array([time for s in mine for time in (s.start, s.end)], dtype=np.float64)
        lengths = np.array([n for s in mine for n in (0, s.end - s.start)], dtype=np.float64)
        shares[family] = np.diff(np.interp(edges, times, np.cumsum(lengths))) / np.diff(edges)
    return shares


def _joined(spans: list[Span]) -> list[Span]:
    """Join neighbours that are equal."""
    joined: list[Span] = []
    for span in spans:
        before = joined[-1] if joined else None
        if before and (span.family, span.name) == (before.family, before.name):
            joined[-1] = Span(before.family, before.name, before.start, span.end)
        else:
            joined.append(span)
    return joined


def _draw_spans(axes: Axes, y: int, spans: list[Span], width: int) -> None:
    for family in dict.fromkeys(span.family for span in spans):
        ranges = [(s.start, s.end - s.start) for s in spans if s.family == family]
        if family == _STALL:
            axes.broken_barh(ranges, (y - 0.2, 0.4), linewidth=0.5, **_STALL_STYLE)
        else:
            color = _COLORS.get(family, _OTHER)
            axes.broken_barh(
                ranges, (y - 0.4, 0.8), facecolor=color, edgecolor="white", linewidth=0.3
            )
    for span in spans:
        if span.end - span.start > len(span.name) * _CHARACTER * width:
            _write(axes, y, span)


def _draw_shares(axes: Axes, y: int, spans: list[Span], begin: int, end: int) -> None:
    """Stack the shares of short intervals: as high as the engine was busy with each family."""
    edges = np.linspace(begin, end, _MAX_SPANS + 1)
    bottom = np.full(_MAX_SPANS, y - 0.4)
    for family, share in shares_of(spans, edges).items():
        if family == _STALL:
            continue
        top = bottom + 0.8 * share
        axes.stairs(top, edges, baseline=bottom, fill=True, color=_COLORS.get(family, _OTHER))
        bottom = top
    axes.axhline(y - 0.4, color="0.75", linewidth=0.5)


def _write(axes: Axes, y: int, span: Span) -> None:
    middle = (span.start + span.end) / 2
    if span.family == _STALL:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        text = axes.text(middle, y, span.name, fontsize=6.5, color="0.25", bbox=box)
    else:
        dark = _COLORS.get(span.family) in _DARK
        text = axes.text(middle, y, span.name, fontsize=6.5, color="white" if dark else "black")
    text.set(ha="center", va="center", clip_on=True)


def _busy_share(result: SimResult, engine: Engine) -> float:
    return result.engines[engine].busy / max(result.total_cycles, 1)


def _legend(families: set[str]) -> list[Patch]:
    others = dict.fromkeys(sorted(families - {_STALL, *_COLORS}), _OTHER)
    patches = [Patch(color=c, label=f) for f, c in (_COLORS | others).items() if f in families]
    if _STALL in families:
        patches.append(Patch(**_STALL_STYLE, label="waits for ..., or is done (END)"))
    return patches
