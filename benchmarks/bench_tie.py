"""The cost model beside the simulator: cycles of every dense op by formula and simulated.

    python benchmarks/bench_tie.py [--model none|smollm2] [--targets edge mobile server]
        [--tokens 512] [--worst 10] [--json FILE]

Without a model, digits are drawn for the layers of SmolLM2-135M and Llama2-7B and for a sweep of
shapes. ``--model smollm2`` runs the model on the built-in text and takes its bitmaps, for prefill
and for one decoded token. A line per op: cycles, difference, what limits the op, and why the array
stalled. The aim: 3 % where computation limits an op, 10 % everywhere; bytes, the array's cycles and
all other events equal, so that energy differs by the leakage during a difference in time only.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from tie import OpTie, draw_digits, tie_encoding

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.model import EncodedActivation
from sparqle_tvm.target.op import SCHEMES, DenseOp

Json = dict[str, Any]
Case = tuple[str, EncodedActivation]

AIM = {"compute": 0.03, "memory": 0.10}

# Name of the encoding, N of its readers, K, share of stored digits, as measured on SmolLM2.
SMOLLM2 = [
    ("attn in", (576, 192, 192), 576, 0.11),
    ("attn out", (576,), 576, 0.52),
    ("ffn in", (1536, 1536), 576, 0.40),
    ("ffn down", (576,), 1536, 0.24),
]
SMOLLM2_HEAD = ("head", (49152,), 576, 0.40)
LLAMA2 = [
    ("attn in", (4096, 4096, 4096), 4096, 0.2),
    ("attn out", (4096,), 4096, 0.5),
    ("ffn in", (11008, 11008), 4096, 0.3),
    ("ffn down", (4096,), 11008, 0.3),
]
SWEEP_ROWS = (1, 4, 16, 64, 100, 300, 1024)
SWEEP = [(64, 256), (192, 576), (1000, 1984), (2048, 512), (128, 4096), (4096, 2048)]
# Weight bits, group size, minima.
WEIGHTS = [(4, 32, True), (8, 32, False), (4, 0, False), (2, 64, False)]


def drawn_cases(tokens: int) -> Iterator[Case]:
    """Layers of two models and a sweep of shapes, with digits that are drawn."""
    rng = np.random.default_rng(0)

    def case(
        name: str, m: int, outputs: tuple[int, ...], k: int, density: float, weights: Any
    ) -> Case:
        shapes = tuple(DenseOp(m, n, k, *weights, label=f"{m}x{n}x{k}") for n in outputs)
        return name, EncodedActivation(name, draw_digits(rng, density, m, k), "signed", shapes)

    for m in (tokens, 1):
        for name, *layer in SMOLLM2:
            yield case(f"smollm2 {name}", m, *layer, (4, 32, True))
    yield case("smollm2 head", 1, *SMOLLM2_HEAD[1:], (8, 32, False))
    for m in (2048, 1):
        for name, *layer in LLAMA2:
            for weights in ((4, 0, False), (4, 128, True)):
                yield case(f"llama2 {name} g{weights[1]}", m, *layer, weights)
    for m in SWEEP_ROWS:
        for n, k in SWEEP:
            for weights in WEIGHTS:
                name = f"sweep w{weights[0]} g{weights[1]}"
                yield case(name, m, (n,), k, 0.3, weights)


def smollm2_cases(tokens: int) -> list[Case]:
    """All encodings of SmolLM2 on the built-in text: the prefill, then its last token."""
    import sparqle_tvm
    from sparqle_tvm.frontend.text import builtin_text, load_tokens
    from sparqle_tvm.models.builtin import fetch_builtin
    from sparqle_tvm.studies.count import prefill_encodings
    from sparqle_tvm.studies.evaluation import encoded_activations

    path = fetch_builtin("smollm2", progress=False)
    model = sparqle_tvm.frontend.from_gguf(path, activations="int8", progress=False)
    ids = np.array([load_tokens(model.tokenizer, builtin_text(), tokens)], dtype=np.int32)
    executable = sparqle_tvm.compile(model.mod, "sparqle/edge", collect_encodings=True)
    executable["prefill"](ids, executable["create_cache"]())
    encodings = prefill_encodings(encoded_activations(executable.encodings))
    return [("prefill", e) for e in encodings] + [("decode", e.last_token()) for e in encodings]


def measure(cases: list[Case], targets: list[str]) -> list[Json]:
    """One record per op, target and scheme; equal lines of a model's layers are all kept."""
    records = []
    for target in targets:
        for scheme in SCHEMES:
            for name, encoding in cases:
                for tie in tie_encoding(encoding, PRESETS[f"sparqle/{target}"], scheme):
                    records.append(record_of(name, target, tie))
    return records


def record_of(name: str, target: str, tie: OpTie) -> Json:
    """What is printed and written of one op."""
    cost, accelerator = tie.analytical, PRESETS[f"sparqle/{target}"]
    table = default_table(accelerator)
    return {
        "target": target,
        "scheme": cost.scheme,
        "case": name,
        "op": tie.shape.label,
        "m_n_k": [tie.shape.m, tie.shape.n, tie.shape.k],
        "analytical_cycles": cost.total_cycles,
        "simulated_cycles": tie.total_cycles,
        "difference": tie.difference,
        "bound": tie.bound,
        "ideal_cycles": max(cost.compute_cycles, cost.dma_cycles),
        "mma_cycles_differ": tie.mma_cycles - cost.mma_cycles,
        "dram_bytes_differ": tie.dram_bytes - cost.dram_bytes,
        "analytical_joules": energy(cost.events, accelerator, table).joules.mid,
        "simulated_joules": energy(tie.events, accelerator, table).joules.mid,
        "events_differ": replace(tie.events, cycles=0) != replace(cost.events, cycles=0),
        "stalls": {engine: dict(reasons) for engine, reasons in tie.stalls.items()},
    }


def print_op(record: Json) -> None:
    """One line: cycles, difference, bound, and the array's stalls in parts of the time."""
    total = record["simulated_cycles"]
    reasons = Counter(record["stalls"]["MMA"]).most_common(3)
    stalls = ", ".join(f"{reason} {cycles / total:.0%}" for reason, cycles in reasons)
    print(
        f"{record['target']:6} {record['scheme']:7} {record['case']:21} {record['op']:18} "
        f"{record['analytical_cycles']:>10} {total:>10} {record['difference']:>+7.1%} "
        f"{record['bound']:7} {stalls}"
    )


def summary(records: list[Json]) -> Json:
    """Worst and typical differences, and what misses the aim."""
    sizes = {bound: [abs(r["difference"]) for r in records if r["bound"] == bound] for bound in AIM}
    return {
        "ops": len(records),
        "largest_difference": {b: max(values, default=0.0) for b, values in sizes.items()},
        "median_difference": {b: float(np.median(v)) if v else 0.0 for b, v in sizes.items()},
        "beyond_aim": sum(abs(r["difference"]) > AIM[r["bound"]] for r in records),
        "unequal_mma_cycles": sum(r["mma_cycles_differ"] != 0 for r in records),
        "unequal_bytes": sum(r["dram_bytes_differ"] != 0 for r in records),
        "analytical_cycles": sum(r["analytical_cycles"] for r in records),
        "simulated_cycles": sum(r["simulated_cycles"] for r in records),
        "ideal_cycles": sum(r["ideal_cycles"] for r in records),
        "unequal_events": sum(r["events_differ"] for r in records),
        "largest_energy_difference": max(
            abs(r["analytical_joules"] / r["simulated_joules"] - 1) for r in records
        ),
        "analytical_joules": sum(r["analytical_joules"] for r in records),
        "simulated_joules": sum(r["simulated_joules"] for r in records),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("none", "smollm2"), default="none")
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=("edge", "mobile", "server"),
        default=["edge", "mobile", "server"],
    )
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--worst", type=int, default=10, help="lines of the summary")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    drawn = arguments.model == "none"
    cases = list(drawn_cases(arguments.tokens)) if drawn else smollm2_cases(arguments.tokens)
    records = measure(cases, arguments.targets)
    print("target scheme  case                  op                 analytical  simulated    diff")
    for record in records:
        print_op(record)
    print(f"\nlargest differences of {len(records)} ops:")
    for record in sorted(records, key=lambda r: -abs(r["difference"]))[: arguments.worst]:
        print_op(record)
    result = summary(records)
    print()
    for name, value in result.items():
        print(f"{name:20} {value}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"summary": result, "ops": records}, file, indent=2)


if __name__ == "__main__":
    main()
