"""Does a second bitmap pay that marks activations which are zero altogether (both digits)?

    python benchmarks/bench_zero_bitmap.py [--targets edge mobile server] [--tokens 512]
        [--coarser 1 2 4] [--json FILE]

SmolLM2 runs on the built-in text; every tensor that a dense layer reads is quantized as it is
(``--coarser 1``) or with a scale several times as large, which makes more of it zero. With the
second bitmap, the LSB pass of a PE row walks only activations that are not zero, and rows of a
group wait for each other as in the MSB pass. Counted are

- the LSB pass as it is, with rows in their order, sorted by the steps of the MSB pass (what
  ``BalanceRows`` does), sorted by the steps of both passes, and without any waiting;
- bytes: one bit more per activation, and either all LSB digits, or none for zeros;
- time of the dense layers with their encodings by the formulas of the cost model, rows sorted for
  both passes, all LSB digits kept, against the same without the second bitmap.

``docs/zero-activations.md`` says what follows from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparqle_tvm.numerics import sorted_rows
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.block_rows import choose_block_rows
from sparqle_tvm.target.cost.overlap import OpLoads, Timeline
from sparqle_tvm.target.cost.sorting import block_waits
from sparqle_tvm.target.op import DenseOp

Json = dict[str, Any]
QMAX = 119
WINDOW_LOW, WINDOW_HIGH = -8, 7
KINDS = {3: "q/k/v", 2: "gate/up"}


@dataclass(frozen=True)
class Layer:
    """A tensor that dense layers read: their shapes, and quantized values (M, K) int8."""

    kind: str
    readers: tuple[DenseOp, ...]
    q: Any

    def nnz(self, marked: Any) -> RowNnz:
        """Marked elements of each row, counted 8 columns at a time."""
        packed = np.packbits(marked, axis=1, bitorder="little")
        return RowNnz.from_pbm(packed, self.q.shape[1])


def activations(tokens: int) -> Iterator[tuple[Any, list[Any]]]:
    """Float inputs (M, K) of all dense layers of SmolLM2 but the last, and the layers."""
    import tvm
    from tvm import relax

    import sparqle_tvm
    from sparqle_tvm import passes
    from sparqle_tvm.compiler import lowering_passes, split_passes
    from sparqle_tvm.frontend.text import builtin_text, load_tokens
    from sparqle_tvm.host.processor import host_target
    from sparqle_tvm.models.builtin import fetch_builtin

    path = fetch_builtin("smollm2", progress=False)
    model = sparqle_tvm.frontend.from_gguf(path, activations="int8", progress=False)
    ids = np.array([load_tokens(model.tokenizer, builtin_text(), tokens)], dtype=np.int32)
    collect = passes.CollectActivations()
    steps = [*split_passes(), collect, *lowering_passes()]
    module = tvm.IRModule({"hidden": model.mod["hidden"]})
    built = relax.build(module, host_target(), relax_pipeline=tvm.transform.Sequential(steps))
    machine = relax.VirtualMachine(built, tvm.cpu())
    _, observed = machine["hidden"](tvm.runtime.tensor(ids))
    for (info, _, kind), tensor in zip(collect.collected["hidden"], observed, strict=True):
        if kind == "input":
            matrix = tensor.numpy()
            yield matrix.reshape(-1, matrix.shape[-1]), info.dense


def quantized(x: Any, coarser: float) -> Any:
    """Quantize per token with a scale `coarser` times as large as needed: (M, K) int8."""
    scale = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-30) / np.float32(QMAX)
    return np.rint(x / (scale * np.float32(coarser))).astype(np.int8)


def layers_of(inputs: list[tuple[Any, list[Any]]], coarser: float) -> list[Layer]:
    """The layers with their inputs quantized."""
    layers = []
    for x, dense in inputs:
        shapes = tuple(
            DenseOp(
                len(x),
                d.out_features,
                x.shape[1],
                d.weight_bits,
                d.group_size,
                d.minimum is not None,
            )
            for d in dense
        )
        kind = KINDS.get(len(dense), "down" if x.shape[1] > dense[0].out_features else "o")
        layers.append(Layer(kind, shapes, quantized(x, coarser)))
    return layers


def waiting_steps(counts: Any, order: Any, accelerator: Accelerator) -> int:
    """Steps of all row groups for `counts` marked elements per row, each as slow as its slowest."""
    steps = -(-counts[order] // accelerator.lanes)
    return int(np.maximum.reduceat(steps, np.arange(0, len(steps), accelerator.rows)).sum())


def layer_figures(layer: Layer, accelerator: Accelerator) -> Json:
    """Steps per block of columns, bytes and time of one layer, with and without the bitmap."""
    q, lanes = layer.q, accelerator.lanes
    rows, k = q.shape
    wide = (q < WINDOW_LOW) | (q > WINDOW_HIGH)
    stored, nonzero = wide.sum(axis=1), (q != 0).sum(axis=1)
    # 0: sorting does not pay, rows stay in order.
    block = choose_block_rows(layer.readers, accelerator)
    msb_keys = -(-stored // lanes)
    both_keys = msb_keys + -(-nonzero // lanes)
    in_order = np.arange(rows)
    by_msb, by_both = (sorted_rows(keys, block or 1) for keys in (msb_keys, both_keys))
    groups = -(-rows // accelerator.rows)
    encode, ops = encoding_costs("", layer.nnz(wide), layer.readers, accelerator, "sparqle", block)
    before = encode.total_cycles + sum(op.total_cycles for op in ops)
    # With the bitmap: every K chunk is one here, which favours it: rows wait once per tile.
    steps = waiting_steps(nonzero, by_both, accelerator) + waiting_steps(
        stored, by_both, accelerator
    )
    after = _time_with_bitmap(layer, accelerator, block, steps, encode, ops)
    return {
        "macs": sum(shape.macs for shape in layer.readers),
        "zeros": float((q == 0).mean()),
        "msb_sparsity": float(1 - wide.mean()),
        "dense": groups * -(-k // lanes),
        "in_order": waiting_steps(nonzero, in_order, accelerator),
        "sorted_by_msb": waiting_steps(nonzero, by_msb, accelerator),
        "sorted_by_both": waiting_steps(nonzero, by_both, accelerator),
        "ideal": float((nonzero / lanes).sum() / accelerator.rows),
        "msb_sorted_by_msb": waiting_steps(stored, by_msb, accelerator),
        "msb_sorted_by_both": waiting_steps(stored, by_both, accelerator),
        "cycles_before": before,
        "cycles_after": after,
    }


def _time_with_bitmap(
    layer: Layer, accelerator: Accelerator, block: int, steps: int, encode: Any, ops: Any
) -> int:
    """Cycles of encoding and dense ops whose LSB pass walks what is not zero."""
    rows, k = layer.q.shape
    extra = storage.pbm_bytes(rows, k)
    dma = encode.dma_cycles + extra / accelerator.dram_bytes_per_cycle
    vector = encode.vector_cycles + extra / accelerator.vector_lanes
    total = max(vector, dma) + block_waits(rows, block, int(vector), int(dma))
    for shape, op in zip(layer.readers, ops, strict=True):
        blocks = -(-shape.n // accelerator.cols) * shape.weight_slices
        digits = op.activation_bytes // op.tiling.activation_loads
        loads = OpLoads(
            op=shape,
            accelerator=accelerator,
            scheme="sparqle",
            activation_bytes=digits + 2 * extra,
            block_rows=block,
        )
        times = Timeline(loads, op.tiling.schedule, steps * blocks).run()
        total += float(times.total_cycles[0])
    return round(total)


def summary(figures: list[Json], digit_bits: int) -> Json:
    """Shares over layers, weighted by MACs; times are added up."""
    weights = np.array([f["macs"] for f in figures], dtype=np.float64)
    weights /= weights.sum()

    def mean(value: Callable[[Json], float]) -> float:
        return float(np.dot(weights, [value(f) for f in figures]))

    zeros = mean(lambda f: f["zeros"])
    result = {
        "zeros": zeros,
        "msb_sparsity": mean(lambda f: f["msb_sparsity"]),
        # Bits per activation beyond those of today: all LSB digits, or none for zeros.
        "bits_all_digits": 1.0,
        "bits_no_zero_digits": 1.0 - digit_bits * zeros,
    }
    for name in ("in_order", "sorted_by_msb", "sorted_by_both", "ideal"):
        result[f"lsb_{name}"] = mean(lambda f, name=name: 1 - f[name] / f["dense"])
    result["array"] = mean(
        lambda f: (
            1
            - (f["sorted_by_both"] + f["msb_sorted_by_both"])
            / (f["dense"] + f["msb_sorted_by_msb"])
        )
    )
    before, after = (sum(f[name] for f in figures) for name in ("cycles_before", "cycles_after"))
    return {**result, "time": 1 - after / before}


def measure(inputs: list[tuple[Any, list[Any]]], targets: list[str], factors: list[float]) -> Json:
    """A summary per target, factor and layer type."""
    found: Json = {}
    for coarser in factors:
        layers = layers_of(inputs, coarser)
        for target in targets:
            accelerator = PRESETS[f"sparqle/{target}"]
            figures = [(layer.kind, layer_figures(layer, accelerator)) for layer in layers]
            kinds = dict.fromkeys(kind for kind, _ in figures)
            parts = {name: [f for kind, f in figures if kind == name] for name in kinds}
            parts["all"] = [f for _, f in figures]
            found[f"{target}, scale x {coarser:g}"] = {
                name: summary(part, accelerator.digit_bits) for name, part in parts.items()
            }
    return found


def print_table(name: str, kinds: Json) -> None:
    """One target and scale."""
    print(f"\n{name}: savings by a bitmap of zeros")
    print(
        f"{'':9}{'zeros':>7}{'s':>7}  LSB pass: {'in order':>9}{'by MSB':>8}{'by both':>9}"
        f"{'ideal':>8}{'array':>8}{'time':>8}   bits per activation"
    )
    for kind, f in kinds.items():
        print(
            f"{kind:9}{f['zeros']:7.1%}{f['msb_sparsity']:7.1%}{'':12}{f['lsb_in_order']:9.1%}"
            f"{f['lsb_sorted_by_msb']:8.1%}{f['lsb_sorted_by_both']:9.1%}{f['lsb_ideal']:8.1%}"
            f"{f['array']:8.1%}{f['time']:8.1%}   {f['bits_all_digits']:+.2f}"
            f" or {f['bits_no_zero_digits']:+.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=("edge", "mobile", "server"),
        default=["edge", "mobile", "server"],
    )
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--coarser", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    inputs = list(activations(arguments.tokens))
    found = measure(inputs, arguments.targets, arguments.coarser)
    for name, kinds in found.items():
        print_table(name, kinds)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
