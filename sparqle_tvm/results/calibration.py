"""The facts of a calibration without its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.numerics.window import WINDOWS
from sparqle_tvm.results.losses import Loss

KIND = "calibration"


@dataclass(frozen=True)
class EncodingSummary:
    """An encoding: its MSB sparsity by window, the better window, the largest magnitude."""

    label: str
    msb_sparsity: Mapping[str, float]
    window: str
    largest: float


@dataclass(frozen=True, kw_only=True)
class MeasuredChoice(Loss):
    """What a choice of factors lost on calibration text, beside what the search expected."""

    importance: str
    expected_loss: float
    msb_sparsity: float


@dataclass(frozen=True, kw_only=True)
class MeasuredStorage(Loss):
    """What a storage of keys and values lost on calibration text against int8."""

    storage: str


@dataclass(frozen=True)
class CalibrationSummary:
    """A calibration; fields as in `calibration.Calibration`."""

    model: str
    fingerprint: str
    text: str
    tokens: int
    msb_sparsity: float
    fisher: bool
    encodings: tuple[EncodingSummary, ...]
    measured: tuple[MeasuredChoice, ...]
    measured_kv: tuple[MeasuredStorage, ...] = ()

    @classmethod
    def of(cls, calibration: Calibration) -> CalibrationSummary:
        """Sum it up."""
        windows = calibration.windows()
        return cls(
            model=calibration.model_name,
            fingerprint=calibration.fingerprint,
            text=calibration.text_name,
            tokens=calibration.tokens,
            msb_sparsity=calibration.msb_sparsity,
            fisher=calibration.has_fisher,
            encodings=tuple(
                EncodingSummary(
                    e.label,
                    {w: e.msb_sparsity(w) for w in WINDOWS},
                    windows[e.label],
                    e.largest,
                )
                for e in calibration
            ),
            measured=tuple(
                MeasuredChoice(
                    **vars(Loss.of(m.increase)),
                    importance=m.importance,
                    expected_loss=m.expected,
                    msb_sparsity=m.msb_sparsity,
                )
                for m in calibration.measured
            ),
            measured_kv=tuple(
                MeasuredStorage(**vars(Loss.of(m.increase)), storage=m.storage)
                for m in calibration.measured_kv
            ),
        )
