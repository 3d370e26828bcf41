"""A model compiled once, to collect its statistics and to try choices of factors on text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from sparqle_tvm.calibration.budget import STORED_SHARES
from sparqle_tvm.calibration.collect import Collector
from sparqle_tvm.calibration.loss import (
    CHUNK_TOKENS,
    MeasuredLoss,
    TextLoss,
    chunks,
    compare,
    text_loss,
)
from sparqle_tvm.calibration.search import Search, Selection
from sparqle_tvm.calibration.sums import encoded_activation
from sparqle_tvm.numerics import EncodingChoice
from sparqle_tvm.target.cost.model import EncodedActivation

Progress = Callable[[int], Any]


class ChoosableModel:
    """The functions ``hidden`` and ``head`` of a model, factors as parameters.

    Parameters
    ----------
    mod : tvm.IRModule
        A quantized llama as `frontend.from_gguf` imports it.

    Attributes
    ----------
    collector : Collector
        Of ``hidden``.
    encodings : list of EncodedActivation
        Of the first chunk of the last text, if they were asked for: those of ``hidden``, and of
        ``head`` for the last token.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        self.collector = Collector(mod, "hidden", ("head",))
        self.encodings: list[EncodedActivation] = []

    def collect(self, tokens: npt.NDArray[np.int32], progress: Progress = lambda n: None) -> None:
        """Add the statistics of a text, chunk by chunk."""
        for start in range(0, len(tokens), CHUNK_TOKENS):
            ids = tokens[start : start + CHUNK_TOKENS]
            self.collector.run(ids[None], key=ids.tobytes())
            progress(len(ids))

    def loss(
        self,
        tokens: Sequence[int] | npt.NDArray[Any],
        selection: Selection | None = None,
        *,
        reference: TextLoss | None = None,
        count: bool = False,
        progress: Progress = lambda n: None,
    ) -> TextLoss:
        """Run a text with a choice.

        Parameters
        ----------
        tokens : token ids
            At least two.
        selection : Selection, optional
            Factors (and windows, which change no value); by default none.
        reference : TextLoss, optional
            Of no factors; as for `loss.text_loss`.
        count : bool
            Whether to count the digits of the first chunk, in `encodings`.
        progress : callable
            As for `loss.text_loss`.
        """
        choices: Mapping[str, EncodingChoice] = selection.choices if selection else {}
        windows = selection.windows if selection else {}
        self.encodings = []

        def hidden(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
            states, observed = self.collector.call(ids[None], choices=choices)
            found = np.asarray(states.numpy()[0])
            if count and not self.encodings:
                self.encodings = self.collector.encoded(observed, choices, windows)
                for info, _, kind in self.collector.other_observations.get("head", []):
                    if kind == "input":
                        self.encodings.append(encoded_activation(info, found[-1:], {}, {}))
            return found

        def head(states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            return np.asarray(self.collector["head"](tvm.runtime.tensor(states[None])).numpy()[0])

        return text_loss(hidden, head, tokens, reference=reference, progress=progress)

    def measure(
        self,
        search: Search,
        tokens: npt.NDArray[np.int32],
        progress: Progress = lambda n: None,
    ) -> tuple[MeasuredLoss, ...]:
        """Measure choices that store some shares of the digits stored now; none without text."""
        if not any(True for _ in chunks(tokens)):
            return ()
        reference = self.loss(tokens, progress=progress)
        stored = 1.0 - search.lossless().msb_sparsity
        measured = []
        for share in STORED_SHARES:
            target = min(1.0 - share * stored, search.most_sparse.msb_sparsity)
            selection = search.for_sparsity(target)
            found = self.loss(tokens, selection, reference=reference, progress=progress)
            expected = selection.loss, selection.msb_sparsity
            measured.append(MeasuredLoss(search.importance, *expected, compare(reference, found)))
        return tuple(measured)
