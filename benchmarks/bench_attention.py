"""What attention in int8 costs SmolLM2-135M, and what the storage of keys and values does.

    python benchmarks/bench_attention.py [--tokens 4096] [--kv STORAGE ..]
    python benchmarks/bench_attention.py --simulate 512 [--decode 16] [--kv planes]

The model, dense layers in int8, runs on the half of the built-in prose that calibration does not
see: with attention in float32, and in int8 with keys and values stored in several ways. Bits per
element are without the scale (a float32 per token and head), digits as measured by
``attention_table.py``.

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

import sparqle_tvm
from sparqle_tvm.calibration.kv import bits_of, function_of, levels_of, with_levels
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.models.builtin import fetch_builtin
from sparqle_tvm.studies.evaluation import evaluate
from sparqle_tvm.studies.inputs import kv_options, read_tokens

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
    executable = sparqle_tvm.compile(with_levels(imported.mod, options), split=False)
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


if __name__ == "__main__":
    main()
