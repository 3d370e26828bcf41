"""The result of calibration: statistics of a model's encodings, bound to that model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.file import read_content, write_content
from sparqle_tvm.calibration.loss import MeasuredKv, MeasuredLoss
from sparqle_tvm.calibration.statistics import SAMPLED_ROWS, EncodingStatistics
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError
from sparqle_tvm.numerics import windows_from
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.numerics.window import WINDOWS


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of the encodings of one model over some text.

    Attributes
    ----------
    model_name : str
        For messages.
    text_name : str
        The texts that were run.
    tokens : int
        Tokens seen.
    encodings : tuple of EncodingStatistics
        In the order of the module.
    sample_keys : uint64 (S,)
        What the sample of rows was drawn by: those with the smallest keys are kept.
    measured : tuple of MeasuredLoss
        What some choices lost on calibration text; what a limit on perplexity is held to.
    measured_kv : tuple of MeasuredKv
        The same of storages of keys and values, if attention was in integers meanwhile.
    """

    model_name: str
    text_name: str
    tokens: int
    encodings: tuple[EncodingStatistics, ...] = field(repr=False)
    sample_keys: npt.NDArray[np.uint64] = field(repr=False)
    measured: tuple[MeasuredLoss, ...] = ()
    measured_kv: tuple[MeasuredKv, ...] = ()

    @cached_property
    def _by_label(self) -> dict[str, EncodingStatistics]:
        """Encodings by their own label, and by those of the dense ops that read them."""
        readers = {dense.label: e for e in self.encodings for dense in e.dense}
        return readers | {e.label: e for e in self.encodings}

    def __contains__(self, label: str) -> bool:
        """Whether there is such an encoding or dense op."""
        return label in self._by_label

    def __getitem__(self, label: str) -> EncodingStatistics:
        """The statistics of an encoding, or of that which a dense op reads.

        Raises InvalidArgumentError if there is none of this label.
        """
        try:
            return self._by_label[label]
        except KeyError:
            known = ", ".join(e.label for e in self.encodings[:4])
            raise InvalidArgumentError(
                f"the calibration has no encoding {label!r}; it has {len(self.encodings)}, as "
                f"{known}"
            ) from None

    def __iter__(self) -> Iterator[EncodingStatistics]:
        """All statistics, in the order of the module."""
        return iter(self.encodings)

    @property
    def has_fisher(self) -> bool:
        """Whether squared gradients were collected."""
        return all(encoding.fisher is not None for encoding in self.encodings)

    @property
    def msb_sparsity(self) -> float:
        """MAC-weighted share of zero MSBs without any choice, 0 to 1."""
        macs = sum(e.macs for e in self.encodings)
        return sum(e.msb_sparsity(e.window) * e.macs for e in self.encodings) / macs

    def row_nnz(self, label: str, rows: int, seed: int = 0) -> RowNnz:
        """Draw the stored MSB digits of `rows` tokens of an encoding.

        Whole rows of the tokens sampled in calibration (signed window, no factors), drawn with
        replacement: their distribution, and which columns are heavy together, are real. The same
        seed draws the same tokens for every label.

        Parameters
        ----------
        label : str
            The encoding, or a dense op that reads it.
        rows : int
            How many.
        seed : int
            Of the random generator.

        Raises
        ------
        InvalidArgumentError
            If the label is not known, or `rows` is less than 1.
        """
        if rows < 1:
            raise InvalidArgumentError(f"rows must be at least 1, got {rows}")
        picks = np.random.default_rng(seed).integers(0, len(self.sample_keys), rows)
        return self[label].row_nnz(picks)

    def windows(self, margin: float = 0.01) -> dict[str, str]:
        """The better window of each encoding, by label; a tie stays signed.

        Nothing is lost: a tensor that arrives quantized, and holds values that the signed window
        cannot, stays unsigned.

        Parameters
        ----------
        margin : float
            What the unsigned window has to gain, as a share of all elements.
        """
        sparsity = {
            e.label: {window: e.msb_sparsity(window) for window in WINDOWS} for e in self.encodings
        }
        return windows_from(sparsity, margin=margin)

    def merge(self, other: Calibration) -> Calibration:
        """The calibration over the texts of both; measured losses do not carry over.

        Raises
        ------
        CalibrationError
            If they are of different models, or only one has gradients.
        """
        self.check({e.label: e.digest for e in other}, other.model_name)
        keys = np.concatenate([self.sample_keys, other.sample_keys])
        # The same text twice gives the same keys: a row counts once in the sample.
        _, first = np.unique(keys, return_index=True)
        keep = first[:SAMPLED_ROWS]
        return Calibration(
            self.model_name,
            " + ".join(dict.fromkeys([self.text_name, other.text_name])),
            self.tokens + other.tokens,
            tuple(
                mine.merged(theirs, keep)
                for mine, theirs in zip(self.encodings, other.encodings, strict=True)
            ),
            keys[keep],
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the digests of all encodings: equal for equal models."""
        return hashlib.sha256("".join(e.digest for e in self.encodings).encode()).hexdigest()

    def check(self, digests: Mapping[str, str], model_name: str = "this model") -> None:
        """Hold the calibration to a model, by the SHA-256 of its encodings by label.

        Raises CalibrationError if an encoding is missing, or its weights are others. Those that
        were not calibrated do not matter.
        """
        for encoding in self.encodings:
            found = digests.get(encoding.label)
            if found != encoding.digest:
                what = "is missing" if found is None else "has other weights"
                raise CalibrationError(
                    f"the calibration was made from another model ({self.model_name}) than "
                    f"{model_name}: encoding {encoding.label} {what}; calibrate again"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file (.npz) that `load` reads; errors as `file.write_content`."""
        write_content(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote; errors as `file.read_content`."""
        return cls(**read_content(path))
