"""What attention in int8 costs SmolLM2-135M, and what the storage of keys and values does.

    python benchmarks/bench_attention.py [--tokens 4096] [--kv STORAGE ..] [--budget 1%]
    python benchmarks/bench_attention.py --simulate 512 [--decode 16] [--kv planes]

The model, dense layers in int8, runs on the half of the built-in prose that calibration does not
see: with attention in float32, and in int8 with keys and values stored in several ways. Bits per
element are without the scale (a float32 per token and head), digits as measured by
``attention_table.py``. With a budget, the last line names the smallest storage within it, as
``sparqle run --kv`` takes it: a larger perplexity than with keys and values in int8 counts.

With ``--simulate`` a prefill of so many tokens runs on the simulator, with attention as programs
(the cache as the first ``--kv`` says) and with attention in floats on the host: seconds of both.
With ``--decode`` so many tokens are decoded after it, and all logits held to those of the host.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.relax.utils import copy_with_new_vars

import sparqle_tvm
from sparqle_tvm.calibration.budget import parse_share
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.models.builtin import fetch_builtin
from sparqle_tvm.numerics.kv_cache import parse_kv
from sparqle_tvm.passes import QuantizeAttention
from sparqle_tvm.studies.evaluation import evaluate
from sparqle_tvm.studies.inputs import kv_options, read_tokens

HEAD_DIM = 64
"""Channels of the model's heads."""

KV = ("int8", "planes", "planes:2", "planes:4", "planes:6", "planes:4,4", "int6", "int5", "int4")


@dataclass(frozen=True)
class Found:
    """Perplexity with a storage of keys and values, and bits per element of each."""

    kv: str
    perplexity: float
    key_bits: float
    value_bits: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--kv", nargs="+", default=KV, metavar="STORAGE")
    parser.add_argument("--budget", type=parse_share, metavar="SHARE")
    parser.add_argument("--simulate", type=int, metavar="TOKENS")
    parser.add_argument("--decode", type=int, default=0, metavar="TOKENS")
    arguments = parser.parse_args()
    if arguments.simulate:
        simulate(arguments.simulate, arguments.decode, arguments.kv[0])
        return
    imported = from_gguf(fetch_builtin("smollm2"), activations="int8", progress=False)
    name, ids = read_tokens(imported, None, arguments.tokens, heldout=True)
    tokens = [int(i) for i in ids]
    print(f"{len(tokens)} tokens of {name}")
    options = ["int8", *(kv for kv in arguments.kv if kv != "int8")]
    executable = sparqle_tvm.compile(variants(imported.mod, options), split=False)
    floating = evaluate(executable, tokens).perplexity
    print("attention    perplexity  to float   to int8  K bits  V bits")
    print(f"{'float':12} {floating:10.4f}", flush=True)
    found: list[Found] = []
    known: dict[tuple[int, int], float] = {}
    for kv in options:
        # Integers of the same levels are the same, however they are held.
        levels = levels_of(kv)
        if levels not in known:
            known[levels] = evaluate(executable, tokens, hidden=function_of(levels)).perplexity
        perplexity = known[levels]
        found.append(Found(kv, perplexity, *bits_of(kv)))
        last = found[-1]
        print(
            f"{kv:12} {perplexity:10.4f} {perplexity / floating - 1:+9.2%} "
            f"{perplexity / found[0].perplexity - 1:+9.2%} {last.key_bits:7.2f} "
            f"{last.value_bits:7.2f}",
            flush=True,
        )
    if arguments.budget is not None:
        allowed = found[0].perplexity * (1 + arguments.budget)
        within = [x for x in found if x.perplexity <= allowed]
        best = min(within, key=lambda x: x.key_bits + x.value_bits)
        print(f"smallest within {arguments.budget:.2%}: --kv {best.kv}")


def simulate(tokens: int, decoded: int, kv: str) -> None:
    """Time a prefill on the simulator with and without attention, and compare with the host."""
    imported = from_gguf(fetch_builtin("smollm2"), activations="int8", progress=False)
    _, ids = read_tokens(imported, None, tokens + decoded, heldout=True)
    given = np.array([ids], np.int32)
    stored: dict[str, Any] = {"attention": "int8", **kv_options(kv, imported)}
    forms = {
        "float attention": {"engine": "simulator"},
        f"attention, kv {kv}": {"engine": "simulator", **stored},
        "host": stored,
    }
    seconds, logits = {}, {}
    for name, options in forms.items():
        executable = sparqle_tvm.compile(imported.mod, "sparqle/edge", **options)
        cache = executable["create_cache"]()
        begin = time.perf_counter()
        found, cache = executable["prefill"](given[:, :tokens], cache)
        seconds[name] = time.perf_counter() - begin
        logits[name] = [found.numpy()]
        for at in range(tokens, tokens + decoded if name != "float attention" else 0):
            found, cache = executable["decode"](given[:, at : at + 1], cache)
            logits[name].append(found.numpy())
        print(f"{name:24} prefill of {tokens} tokens: {seconds[name]:7.1f} s", flush=True)
    floating, programs, host = forms
    print(f"with attention as programs: {seconds[programs] / seconds[floating]:.2f} times as long")
    pairs = zip(logits[programs], logits[host], strict=True)
    same = all(np.array_equal(a, b) for a, b in pairs)
    print(f"logits of prefill and {decoded} decoded tokens: {'equal' if same else 'NOT equal'}")
    if not same:
        raise SystemExit(1)


def variants(mod: tvm.IRModule, options: list[str]) -> tvm.IRModule:
    """``hidden`` as it is, one function with attention in int8 for all levels, and ``head``."""
    functions = {name: mod[name] for name in ("hidden", "head")}
    for kv in options:
        name = function_of(levels_of(kv))
        if name in functions:
            continue
        quantize = QuantizeAttention(default=parse_kv(kv))
        quantized = quantize(tvm.IRModule({"hidden": copy_with_new_vars(mod["hidden"])}))["hidden"]
        functions[name] = quantized.with_attr("global_symbol", name)
    return tvm.IRModule(functions)


def levels_of(kv: str) -> tuple[int, int]:
    """Levels of keys and of values."""
    storage = parse_kv(kv)
    return storage.keys.levels, storage.values.levels


def function_of(levels: tuple[int, int]) -> str:
    """Name of the function with keys and values of these levels."""
    return "hidden_{}_{}".format(*levels)


def bits_of(kv: str) -> tuple[float, float]:
    """Bits per element of keys and values, mean over layers and heads, from measured digits.

    ``planes`` without a factor holds each head as is smaller; a factor holds for all.
    """
    storage, measured = parse_kv(kv), measured_attention()
    layers = len(measured.layers)
    chosen = kv == "planes"
    sides = []
    for side in ("k", "v"):
        mine = storage.keys if side == "k" else storage.values
        bits = []
        for place, layer in enumerate(measured.layers):
            table = np.array(getattr(layer, f"{side}_msb_sparsity"))
            if chosen:
                found = measured.storage(place, layers, table.shape[1], HEAD_DIM)
                mine = found.keys if side == "k" else found.values
            what, heads = ("key" if side == "k" else "value"), table.shape[1]
            stored = measured.stored(what, place, layers, heads, mine.levels)
            bits += [mine.mean_bits(1 - s, head) for head, s in enumerate(stored)]
        sides.append(float(np.mean(bits)))
    return sides[0], sides[1]


if __name__ == "__main__":
    main()
