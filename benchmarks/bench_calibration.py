"""Ways to choose scale factors, side by side, on text that calibration did not see.

    python benchmarks/bench_calibration.py [--model smollm2] [--tokens 4096] [--measure 2048]
        [--sparsity 0.84 0.88 0.92] [--no-fisher] [--json FILE]

Every way brings the model to the same MSB sparsities: factors by weight group or one per layer
(alpha), errors weighed by the weights and outputs (no gradients) or by Fisher information (torch).
Perplexity against int8 with its paired standard error, KL to int8, the MSB sparsity reached (in
all, by type of layer), and the array's cycles saved in a 512-token prefill on sparqle/edge with
rows balanced.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sparqle_tvm.calibration import Calibration, Search
from sparqle_tvm.calibration.choosable_model import ChoosableModel
from sparqle_tvm.calibration.loss import compare
from sparqle_tvm.results.losses import Loss
from sparqle_tvm.results.passes import layer_type
from sparqle_tvm.studies.calibrate import calibrate
from sparqle_tvm.studies.count import count_phases
from sparqle_tvm.studies.evaluation import transformer_shape
from sparqle_tvm.studies.inputs import import_model, read_tokens
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.model import EncodedActivation

Json = dict[str, Any]


def alpha_only(calibration: Calibration) -> Calibration:
    """The same statistics with one factor for each encoding."""
    encodings = tuple(replace(encoding, tied=True) for encoding in calibration)
    return replace(calibration, encodings=encodings)


def ways(calibration: Calibration) -> Iterator[tuple[str, Search]]:
    """Name and search of every way."""
    for importance in ("weights", "fisher") if calibration.has_fisher else ("weights",):
        yield f"groups, {importance}", Search(calibration, importance=importance)
        yield f"alpha, {importance}", Search(alpha_only(calibration), importance=importance)


def by_type(encodings: list[EncodedActivation]) -> dict[str, float]:
    """Share of zero MSBs by type of the first layer that reads an encoding."""
    found: dict[str, list[float]] = {}
    for encoding in encodings:
        kind = layer_type(encoding.consumers[0].label)
        found.setdefault(kind, []).append(encoding.nnz.msb_sparsity)
    return {kind: sum(values) / len(values) for kind, values in found.items()}


def measure(arguments: argparse.Namespace) -> Iterator[Json]:
    imported = import_model(arguments.model)
    importance = "weights" if arguments.no_fisher else "fisher"
    begin = time.perf_counter()
    calibration = calibrate(imported, tokens=arguments.tokens, importance=importance)
    print(f"calibration with {arguments.tokens} tokens: {time.perf_counter() - begin:.0f} s")
    _, ids = read_tokens(imported, None, arguments.measure, heldout=True)
    choosable, shape = ChoosableModel(imported.mod), transformer_shape(imported.config)
    reference = choosable.loss(ids)
    for name, search in ways(calibration):
        for target in arguments.sparsity:
            selection = search.for_sparsity(target)
            found = choosable.loss(ids, selection, reference=reference, count=True)
            prefill = count_phases(choosable.encodings, shape, PRESETS["sparqle/edge"])[0]
            yield {
                "way": name,
                "expected_loss": selection.loss,
                "msb_sparsity": prefill.msb_sparsity,
                "by_type": by_type(choosable.encodings),
                "mma_reduction": prefill.schemes["sparqle"].mma_saved,
                **vars(Loss.of(compare(reference, found))),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--measure", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.84, 0.88, 0.92])
    parser.add_argument("--no-fisher", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    print(f"{'way':18} {'s':>6} {'perplexity':>16} {'KL':>7} {'array':>7}  by type")
    for row in measure(arguments):
        rows.append(row)
        types = " ".join(f"{kind} {value:.0%}" for kind, value in row["by_type"].items())
        change, error = row["perplexity_increase"], row["perplexity_increase_error"]
        print(
            f"{row['way']:18} {row['msb_sparsity']:6.1%} {change:+7.2%} ± {error:6.2%} "
            f"{row['kl_nats']:7.4f} {-row['mma_reduction']:7.1%}  {types}"
        )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
