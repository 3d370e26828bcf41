"""What one pass of a compiled model over a text gives: perplexity, digest and encodings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparqle_tvm.errors import UnsupportedModelError
from sparqle_tvm.models.sparsity import row_quantiles
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.results.passes import layer_type
from sparqle_tvm.results.run import LayerSparsity, MsbSparsity, by_kind, mean_sparsity
from sparqle_tvm.target.cost.expected import TYPICAL_DENSITY
from sparqle_tvm.target.cost.factors import EncodeFactors
from sparqle_tvm.target.cost.model import EncodedActivation
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.op import DenseOp

if TYPE_CHECKING:
    from sparqle_tvm.models.decoder import DecoderConfig
    from sparqle_tvm.runtime.executable import EncodingRecord, Executable
    from sparqle_tvm.runtime.launch import AttentionLaunch
    from sparqle_tvm.studies.held_out import ChosenFunctions


@dataclass(frozen=True)
class Evaluation:
    """One compiled form of the model on the text.

    Attributes
    ----------
    perplexity : float
        Exponential of the mean negative log-likelihood of the tokens after the first.
    digest : str
        SHA-256 of all logits: equal digests, equal bits.
    hidden, head : list of EncodingRecord
        Encodings of the decoder over all tokens, and of the output layer over the last ones.
    attention : list of AttentionLaunch
        Programs of attention that ran, over all tokens.
    """

    perplexity: float
    digest: str
    hidden: list[EncodingRecord]
    head: list[EncodingRecord]
    attention: list[AttentionLaunch] = field(default_factory=list)


def evaluate(
    executable: Executable | ChosenFunctions, tokens: Sequence[int], *, hidden: str = "hidden"
) -> Evaluation:
    """Run all tokens, at least two, at once; take perplexity, digest of the logits, and encodings.

    The executable has the functions ``head`` and `hidden`.
    """
    from sparqle_tvm.models.logits import log_likelihoods, logits_chunks

    recorder = _Recorder(executable, {"hidden": hidden, "head": "head"})
    digest, total, position = hashlib.sha256(), 0.0, 1
    for logits in logits_chunks(recorder, tokens):
        digest.update(logits.tobytes())
        following = tokens[position : position + len(logits)]
        total += float(log_likelihoods(logits[: len(following)], following).sum())
        position += len(logits)
    perplexity = math.exp(-total / (len(tokens) - 1))
    encodings = recorder.encodings
    found = encodings["hidden"], encodings["head"], recorder.attention
    return Evaluation(perplexity, digest.hexdigest(), *found)


class _Recorder:
    """Functions of an executable, which keeps the encodings of the last call of each."""

    def __init__(self, executable: Executable | ChosenFunctions, names: Mapping[str, str]) -> None:
        self._executable, self._names = executable, names
        self.encodings: dict[str, list[EncodingRecord]] = {}
        self.attention: list[AttentionLaunch] = []

    def __getitem__(self, name: str) -> Any:
        from sparqle_tvm.runtime.launch import recording_attention

        function = self._executable[self._names[name]]

        def call(*arguments: Any) -> Any:
            self._executable.encodings = []
            with recording_attention() as launches:
                result = function(*arguments)
            self.attention = launches or self.attention
            self.encodings[name] = list(self._executable.encodings)
            return result

        return call


def transformer_shape(config: DecoderConfig) -> TransformerShape:
    """Sizes of a model, as the cost model wants them."""
    return TransformerShape.of(config)


def encoded_activations(
    records: Sequence[EncodingRecord], densities: Mapping[str, float] | None = None
) -> list[EncodedActivation]:
    """Turn the bitmaps of a pass into what the cost model takes.

    `densities` are those that programs were chosen for, by label; others are typical.

    Raises
    ------
    UnsupportedModelError
        If nothing was encoded: the model has no quantized dense layer.
    """
    if not records:
        raise UnsupportedModelError(
            "the model has no dense layer with integer weights, so there is nothing to split; "
            "use a file of quantized weights (Q4_0, Q4_K_M, ..)"
        )
    encodings = []
    for record in records:
        nnz = RowNnz.from_pbm(record.pbm, record.info.columns)
        shapes = tuple(
            DenseOp(
                *(nnz.rows, c.n, c.k, c.weight_bits, c.group_size, c.has_min, c.label),
                digit_bits=record.info.digit_bits,
                scale_bytes=c.scale_bytes,
            )
            for c in record.consumers
        )
        factors = EncodeFactors(record.info.has_factors, record.info.has_bands)
        density = (densities or {}).get(record.label, TYPICAL_DENSITY)
        encodings.append(
            EncodedActivation(record.label, nnz, record.window, shapes, factors, density)
        )
    return encodings


def layer_sparsities(
    records: Sequence[EncodingRecord], encodings: Sequence[EncodedActivation]
) -> tuple[LayerSparsity, ...]:
    """MSB sparsity of each encoding; its type is that of its readers without the block number."""
    layers = []
    for record, encoding in zip(records, encodings, strict=True):
        consumers = tuple(shape.label for shape in encoding.consumers)
        layers.append(
            LayerSparsity(
                label=encoding.label,
                kind=" ".join(layer_type(label) for label in consumers),
                consumers=consumers,
                window=encoding.window,
                msb_sparsity=encoding.nnz.msb_sparsity,
                macs=encoding.macs,
                window_reason=record.info.window_reason,
                row_density=tuple(row_quantiles(RowNnz.from_pbm(record.pbm, record.info.columns))),
            )
        )
    return tuple(layers)


def msb_sparsity(
    records: Sequence[EncodingRecord], encodings: Sequence[EncodedActivation]
) -> MsbSparsity:
    """MSB sparsity of all encodings, by layer and by type of layer."""
    layers = layer_sparsities(records, encodings)
    return MsbSparsity(mean_sparsity(layers), by_kind(layers), layers)
