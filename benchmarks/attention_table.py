"""Measure which keys the attention of SmolLM2-135M needs, and how many of its digits are zero.

    python benchmarks/attention_table.py [--tokens 8192] [--file FILE]

The model runs once, dense layers and attention in int8, on the built-in prose. For every context
the last query tokens are looked at, in blocks of 1 token (decode) and more (prefill): a key is live
if its p is not 0 in any row of the block, for all query heads of its key head. The file is stored
with the package (``sparqle_tvm/models/data``), for estimates; a test holds its format.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.compiler import Options, host_phases
from sparqle_tvm.files import write_text
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.frontend.text import builtin_text, load_tokens
from sparqle_tvm.host.processor import host_target
from sparqle_tvm.models.attention_sparsity import attention_file, load_attention
from sparqle_tvm.models.builtin import fetch_builtin
from sparqle_tvm.numerics import attention as numerics
from sparqle_tvm.numerics.kv_cache import CacheName, prefers_planes, with_factor
from sparqle_tvm.numerics.window import window_of
from sparqle_tvm.studies.inputs import BUILTIN_TEXT
from sparqle_tvm.threads import use_threads

CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
BLOCK_TOKENS = (1, 4, 16, 64)
QUERY_ROWS = 64
FACTORS = (1, 2, 3, 4, 6, 8)
"""On the scales of keys and values: what they leave of the 127 levels."""
HEAD_DIM = 64
"""Channels of the model's heads."""

INT8 = window_of("signed").digits(4)
PROBABILITIES = window_of("unsigned").digits(4, signed=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=CONTEXTS[-1])
    parser.add_argument("--file", type=Path, default=attention_file())
    arguments = parser.parse_args()
    imported = from_gguf(fetch_builtin("smollm2"), activations="int8")
    ids = np.asarray(load_tokens(imported.tokenizer, builtin_text(), arguments.tokens), np.int32)
    contexts = [c for c in CONTEXTS if c <= len(ids)]
    layers = []
    for number, (op, operands) in enumerate(attention_of(imported.mod, ids)):
        layers.append(layer_of(op, operands, contexts))
        live, k, v = (layers[-1][x] for x in ("live_keys", "k_msb_sparsity", "v_msb_sparsity"))
        print(
            f"layer {number:2}: live keys of a token {live[-1][0]:.3f}, of {BLOCK_TOKENS[-1]} "
            f"{live[-1][-1]:.3f}; MSB sparsity Q {layers[-1]['q_msb_sparsity']:.2f}, K "
            f"{np.mean(k[0]):.2f}, V {np.mean(v[0]):.2f}, P {layers[-1]['p_msb_sparsity'][-1]:.3f}",
            flush=True,
        )
    table = {
        "label": f"measured on SmolLM2-135M-Instruct, {len(ids)} tokens of {BUILTIN_TEXT}",
        "command": "python benchmarks/attention_table.py",
        "model_sha256": imported.sha256,
        "text": BUILTIN_TEXT,
        "query_rows": QUERY_ROWS,
        "contexts": contexts,
        "block_tokens": BLOCK_TOKENS,
        "factors": FACTORS,
        "layers": layers,
    }
    write_text(arguments.file, compact(table))
    summary(load_attention(arguments.file))


def attention_of(
    mod: tvm.IRModule, ids: NDArray[np.int32]
) -> list[tuple[dialect.Attention, list[NDArray[np.float32]]]]:
    """Every attention of the model with its queries, keys and values on a text."""
    dialect.register()
    collect = passes.CollectAttention()
    phases = host_phases(Options(attention="int8"))
    steps = tvm.transform.Sequential([*phases["import"], collect, *phases["lower"]])
    hidden = tvm.IRModule({"hidden": mod["hidden"]})
    built = relax.build(hidden, host_target(), relax_pipeline=steps)
    use_threads()
    machine = relax.VirtualMachine(built, tvm.cpu())
    _, observed = machine["hidden"](tvm.runtime.tensor(ids[None]))
    tensors = iter(observed)
    return [(op, [next(tensors).numpy() for _ in range(3)]) for op in collect.collected["hidden"]]


def layer_of(
    op: dialect.Attention, operands: list[NDArray[np.float32]], contexts: list[int]
) -> dict[str, Any]:
    """The measured numbers of a layer, as `MeasuredLayer` has them."""
    queries, keys, values = (numerics.quantize_heads(x) for x in operands)
    looks = [look(op, queries, keys, values, context) for context in contexts]
    return {
        "live_keys": [x[0] for x in looks],
        "live_runs": [x[1] for x in looks],
        "p_nonzero": [x[2] for x in looks],
        "p_msb_sparsity": [x[3] for x in looks],
        "q_msb_sparsity": rounded(zero_high(queries).mean()),
        "k_msb_sparsity": [zero_high_by_head(operands[1], factor) for factor in FACTORS],
        "v_msb_sparsity": [zero_high_by_head(operands[2], factor) for factor in FACTORS],
    }


def look(
    op: dialect.Attention,
    queries: numerics.Heads,
    keys: numerics.Heads,
    values: numerics.Heads,
    context: int,
) -> tuple[list[float], list[float], float, float]:
    """Live keys and runs by block, and shares of p, of the last queries of a context."""
    rows = slice(context - QUERY_ROWS, context)
    heads, kv_heads = queries.values.shape[1], keys.values.shape[1]
    group = heads // kv_heads
    seen = numerics.causal_mask(rows.start, QUERY_ROWS, 0, context)
    live, runs = np.zeros(len(BLOCK_TOKENS)), np.zeros(len(BLOCK_TOKENS))
    nonzero = low = 0.0
    for head in range(kv_heads):
        of_group = slice(head * group, (head + 1) * group)
        q = queries.values[rows, of_group]
        block = numerics.attend_rows(
            q.reshape(-1, q.shape[2]),
            numerics.row_factors(queries.scale[rows, of_group].reshape(-1), op.scale),
            numerics.Heads(keys.values[:context], keys.scale[:context]),
            numerics.Heads(values.values[:context], values.scale[:context]),
            head,
            np.repeat(seen, group, axis=0),
        )
        p = block.probabilities.reshape(QUERY_ROWS, group, context)
        nonzero += (p > 0).sum() / (group * seen.sum()) / kv_heads
        small = (p <= PROBABILITIES.zero_range[1]) & seen[:, None]
        low += small.sum() / (group * seen.sum()) / kv_heads
        needed = p.any(axis=1)
        for place, tokens in enumerate(BLOCK_TOKENS):
            blocks = needed.reshape(-1, tokens, context).any(axis=1)
            begins = blocks & ~np.pad(blocks, ((0, 0), (1, 0)))[:, :-1]
            visible = seen[tokens - 1 :: tokens].sum(axis=1)
            live[place] += (blocks.sum(axis=1) / visible).mean() / kv_heads
            runs[place] += (begins.sum(axis=1) / visible).mean() / kv_heads
    return rounded(live), rounded(runs), rounded(nonzero), rounded(low)


def zero_high_by_head(x: NDArray[np.float32], factor: float) -> list[float]:
    """MSB sparsity of each head of keys or values, with a factor on their scales."""
    levels = with_factor(factor).levels
    found: list[float] = rounded(zero_high(numerics.quantize_heads(x, levels=levels)).mean((0, 2)))
    return found


def zero_high(heads: numerics.Heads) -> NDArray[np.bool_]:
    """Which integers have no high digit in the window around 0."""
    low, high = INT8.zero_range
    return np.asarray((heads.values >= low) & (heads.values <= high))


def rounded(value: Any) -> Any:
    """Numbers with five decimals, as Python has them."""
    return np.round(value, 5).tolist()


def compact(table: dict[str, Any]) -> str:
    """JSON with a line per layer."""
    layers = ",\n  ".join(json.dumps(layer) for layer in table["layers"])
    head = json.dumps({**table, "layers": []}, indent=1)
    return head.replace('"layers": []', f'"layers": [\n  {layers}\n ]') + "\n"


def summary(found: Any) -> None:
    """Print means over the layers, as docs/attention.md has them."""
    print("keys     live: " + "".join(f"{b:>5} tok" for b in found.block_tokens) + "   p > 0")
    for place, context in enumerate(found.contexts):
        live = np.mean([layer.live_keys[place] for layer in found.layers], axis=0)
        p = np.mean([layer.p_nonzero[place] for layer in found.layers])
        print(f"{context:6}         " + "".join(f"{x:9.1%}" for x in live) + f"{p:8.1%}")
    for name in ("q", "k", "v"):
        values = np.array([getattr(layer, f"{name}_msb_sparsity") for layer in found.layers])
        if name == "q":
            print(f"MSB sparsity of Q: {values.mean():.3f}")
            continue
        what: CacheName = "key" if name == "k" else "value"
        for place, factor in enumerate(found.factors):
            s = values[:, place]
            print(
                f"MSB sparsity of {name.upper()}, factor {factor:g}: {s.mean():.3f}, "
                f"{with_factor(factor).mean_bits(s.mean()):.2f} bits; "
                f"{sum(prefers_planes(what, HEAD_DIM, x) for x in s.ravel())} of {s.size} "
                "heads are smaller in planes than in 8 bits"
            )


if __name__ == "__main__":
    main()
