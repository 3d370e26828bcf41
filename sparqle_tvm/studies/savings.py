"""Estimates in rows: savings against MSB sparsity, and limits along a knob."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparqle_tvm.frontend.shape import model_shape
from sparqle_tvm.models.shapes import ModelShape
from sparqle_tvm.models.sparsity import MsbDistribution
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import PARTS, Phase
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.limits import LIMITS

if TYPE_CHECKING:
    from sparqle_tvm.target.cost.energy_table import EnergyTable

SPARSITIES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Point:
    """One estimate: MSB sparsity (weighted by MACs), and shares of ``dense`` that are saved.

    `latency` is that of the cycles, `energy` has its band.
    """

    msb_sparsity: float
    latency: float
    energy: float
    energy_low: float
    energy_high: float

    def saved(self, quantity: str) -> float:
        """``latency`` or ``energy``."""
        return self.latency if quantity == "latency" else self.energy


@dataclass(frozen=True)
class Curve:
    """A model in one phase: what is saved in one part of it.

    Attributes
    ----------
    model, phase, part : str
        Name for reports, which pass, and which of `results.passes.PARTS`.
    seq : int
        Tokens of the pass, or in the cache before it.
    points : tuple of Point
        With rising MSB sparsity, equal in all layers.
    measured : Point
        With a measured distribution.
    limits : dict of str to float
        Shares of the time of the split form with the measured distribution, by
        `target.cost.limits.LIMITS`; they add up to 1.
    """

    model: str
    phase: str
    seq: int
    part: str
    points: tuple[Point, ...]
    measured: Point
    limits: dict[str, float]

    def needed(self, quantity: str, share: float) -> float | None:
        """MSB sparsity from which on `share` is saved, on straight lines between the points.

        None if it is not saved even without any MSB digit.
        """
        before = None
        for point in self.points:
            saved = point.saved(quantity)
            if saved >= share:
                if before is None:
                    return point.msb_sparsity
                xs = (before.msb_sparsity, point.msb_sparsity)
                return float(np.interp(share, (before.saved(quantity), saved), xs))
            before = point
        return None


@dataclass(frozen=True)
class Series:
    """Estimates with ``dense`` and ``sparqle``, one for every value of a knob."""

    title: str
    knob: str
    values: tuple[int, ...]
    estimates: tuple[Estimate, ...]


def saving_curves(
    model: str | ModelShape,
    phase: Phase,
    *,
    seq: int,
    target: str | Accelerator,
    measured: str | MsbDistribution = "measured",
    sparsities: Sequence[float] = SPARSITIES,
    table: EnergyTable | None = None,
) -> tuple[Curve, ...]:
    """Estimate a model at several MSB sparsities.

    Parameters
    ----------
    model, phase, seq, target, table
        As in `sparqle_tvm.studies.estimate.estimate`; one sequence.
    measured : str or MsbDistribution
        Where the measured point comes from.
    sparsities : sequence of float
        The others, rising.

    Returns
    -------
    tuple of Curve
        One for each of `results.passes.PARTS`.
    """

    def at(source: str | float | MsbDistribution) -> Estimate:
        return estimate(
            model,
            phase,
            seq=seq,
            msb_sparsity=source,
            target=target,
            schemes=("dense", "sparqle"),
            table=table,
        )

    found, centre = [at(s) for s in sparsities], at(measured)
    return tuple(
        Curve(
            model=model_shape(model).name,
            phase=phase,
            seq=seq,
            part=part,
            points=tuple(_point(e, part) for e in found),
            measured=_point(centre, part),
            limits={name: centre.schemes["sparqle"].part(part).share(name) for name in LIMITS},
        )
        for part in PARTS
    )


def select(curves: Sequence[Curve], phase: str, part: str) -> Iterator[Curve]:
    """The curves of a phase and a part."""
    return (curve for curve in curves if (curve.phase, curve.part) == (phase, part))


def _point(result: Estimate, part: str) -> Point:
    saved = result.saved("sparqle", part)
    return Point(
        msb_sparsity=result.msb_sparsity,
        latency=saved.cycles,
        energy=saved.energy.mid,
        energy_low=saved.energy.low,
        energy_high=saved.energy.high,
    )
