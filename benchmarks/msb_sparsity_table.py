"""Measure how many MSB digits the activations of SmolLM2-135M store, for digits of 2, 4 and 8 bits.

    python benchmarks/msb_sparsity_table.py [--tokens 512] [--folder FOLDER]

The model runs once, with int8 activations, on the built-in prose. What its dense layers take is
kept as float32, before it is quantized, and quantized per token to 2k bits for every k, symmetric,
to the largest integer of the signed window; the digits outside of that window are counted. So for
k = 4 the digits are those of `sparqle run`. For k = 2 and 8 the layers before had int8 activations
all the same: a run with int4 or int16 activations from end to end would differ a little.

A file for every k is stored with the package (``sparqle_tvm/models/data``), from where
`sparqle estimate` transfers them to other models; a test holds their format.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.calibration.choosable_model import ChoosableModel
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.frontend.text import builtin_text, load_tokens
from sparqle_tvm.models.builtin import fetch_builtin
from sparqle_tvm.models.quantized import quantizer_levels
from sparqle_tvm.models.sparsity import (
    CLASSES,
    layer_type_of,
    measured_file,
    row_quantiles,
    summarize,
)
from sparqle_tvm.numerics import encode, quantize_per_token
from sparqle_tvm.numerics.integers import DIGIT_BITS
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.studies.inputs import BUILTIN_TEXT

RUN_DIGIT_BITS = 4
"""Digits of what was run."""

HEAD_ROWS = 64
"""The output layer reads the last rows of a text, as many as `sparqle run` gives it at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=measured_file(4).parent)
    arguments = parser.parse_args()
    imported = from_gguf(fetch_builtin("smollm2"), activations="int8")
    ids = np.asarray(load_tokens(imported.tokenizer, builtin_text(), arguments.tokens), np.int32)
    found = list(activations(ChoosableModel(imported.mod), ids))
    for k in DIGIT_BITS:
        layers = [(kind, quantiles(x, k)) for kind, x in found]
        label = f"measured on SmolLM2-135M-Instruct, {len(ids)} tokens of {BUILTIN_TEXT}"
        if k != RUN_DIGIT_BITS:
            label += f", inputs of its int8 layers quantized to {2 * k} bits"
        table = {
            "label": label,
            "command": "python benchmarks/msb_sparsity_table.py",
            "digit_bits": k,
            "model_sha256": imported.sha256,
            "text": {"name": BUILTIN_TEXT, "tokens": len(ids)},
            "layers": len(layers),
            "classes": CLASSES,
            "layer_types": summarize(layers),
        }
        write(table, arguments.folder / measured_file(k).name)
        for kind, classes in table["layer_types"].items():
            means = ", ".join(f"{1 - sum(c) / len(c):.3f}" for c in classes)
            print(f"k = {k}: {kind:8} MSB sparsity by class: {means}")


def activations(
    model: ChoosableModel, ids: NDArray[np.int32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Layer type and input, float32 (tokens, K), of every encoding of the model."""
    hidden, observed = model.collector.call(ids[None])
    for label, x in model.collector.inputs(observed).items():
        yield layer_type(label), x
    yield "output", hidden.numpy()[0, -HEAD_ROWS:]


def layer_type(label: str) -> str:
    """Layer type of an encoding, which has the name of its first reader."""
    kind = layer_type_of([label])
    assert kind is not None, label
    return kind


def quantiles(x: NDArray[np.float32], k: int) -> list[float]:
    """Quantile function of the share of stored digits per row, for digits of k bits."""
    q, _ = quantize_per_token(x, qmax=quantizer_levels(k), k=k)
    return row_quantiles(RowNnz.from_pbm(encode(q, k=k).pbm, x.shape[1]))


def write(table: dict[str, object], path: Path) -> None:
    """Write a table, a line per class."""
    lines = json.dumps(table, indent=1).replace(",\n    ", ", ").replace("[\n    ", "[")
    path.write_text(lines.replace("\n   ]", "]") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
