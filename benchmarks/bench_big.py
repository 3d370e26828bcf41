"""Models of 1.1 and 7 billion parameters: time to compile, peak memory, time of a prefill.

The files are written first, with random 4-bit weights (Q4_0), into a temporary directory. Each
engine runs in a process of its own, so that peak memory is its own; beside it stands the bound
that is held to, 1.6 times the file and 1 GiB. With ``--constants`` weights are constants of the
module, as those of ONNX and PyTorch are: no bound is promised.

    python benchmarks/bench_big.py [--sizes 1.1b 7b] [--tokens 128] [--constants] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

# Layers, width, width of the MLP, heads, heads of keys, tokens of the vocabulary.
SIZES = {
    "tiny": (2, 256, 512, 4, 4, 512),
    "1.1b": (22, 2048, 5632, 32, 4, 32000),
    "7b": (32, 4096, 11008, 32, 32, 32000),
}
"""TinyLlama's and Llama2's shapes, and one to try the script with."""

ENGINES = ("host", "simulator")
GROUP, BLOCK_BYTES = gguf.GGML_QUANT_SIZES[Kind.Q4_0]
_POOL_BLOCKS = 1 << 20


def write_model(path: Path, size: str) -> None:
    """Write a llama of that size whose weights are random, the same blocks again and again."""
    layers, width, ffn, heads, kv_heads, vocab = SIZES[size]
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, (_POOL_BLOCKS, BLOCK_BYTES), dtype=np.uint8)
    # Outputs of a layer are about as large as its inputs: the nibbles less 8 have a variance of 21.
    scale = rng.uniform(0.5, 1.5, (_POOL_BLOCKS, 1)) / np.sqrt(21 * width)
    pool[:, :2] = scale.astype(np.float16).view(np.uint8)
    blocks = pool.reshape(-1)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_context_length(2048)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    tensors: list[tuple[str, int, int]] = [("token_embd", vocab, width)]
    kv = width // heads * kv_heads
    for i in range(layers):
        dense = {
            "attn_q": (width, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, width),
            "ffn_gate": (ffn, width),
            "ffn_up": (ffn, width),
            "ffn_down": (width, ffn),
            "attn_norm": (width, 0),
            "ffn_norm": (width, 0),
        }
        tensors += [(f"blk.{i}.{name}", *shape) for name, shape in dense.items()]
    tensors += [("output_norm", width, 0), ("output", vocab, width)]
    for name, rows, columns in tensors:
        if not columns:
            writer.add_tensor_info(f"{name}.weight", (rows,), np.dtype(np.float32), rows * 4)
            continue
        row_bytes = columns // GROUP * BLOCK_BYTES
        writer.add_tensor_info(
            f"{name}.weight",
            (rows, row_bytes),
            np.dtype(np.uint8),
            rows * row_bytes,
            raw_dtype=Kind.Q4_0,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    begin = 0
    for _, rows, columns in tensors:
        if not columns:
            writer.write_tensor_data(np.ones(rows, np.float32))
            continue
        count = rows * columns // GROUP * BLOCK_BYTES
        # Each tensor begins at another block, so that no two are equal.
        begin = (begin + 7919 * BLOCK_BYTES) % len(blocks)
        data = np.resize(np.roll(blocks, -begin), count)
        writer.write_tensor_data(data)
    writer.close()


def measure(path: Path, engine: str, tokens: int, *, constants: bool) -> dict[str, Any]:
    """Import, compile and run a prefill in this process."""
    import tvm

    import sparqle_tvm

    stages, peaks, last = {}, {}, time.perf_counter()

    def done(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage], last = now - last, now
        peaks[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    done("start")
    model = sparqle_tvm.frontend.from_gguf(path, progress=False)
    done("import")
    names = ("create_cache", "prefill", "token_limits")
    busy = time.process_time()
    source, weights = (model.mod, None) if constants else (model.template, model.weights)
    functions = tvm.IRModule({name: source[name] for name in names})
    del source
    executable = sparqle_tvm.compile(
        functions, "sparqle/edge", weights=weights, engine=engine, attention="int8"
    )
    del functions, model
    executable["prefill"]  # its machine code is emitted when a function is first asked for
    done("compile")
    busy = time.process_time() - busy
    ids = np.random.default_rng(1).integers(0, 500, (1, tokens), np.int32)
    logits, _ = executable["prefill"](ids, executable["create_cache"]())
    done("run")
    values = logits.numpy()
    assert np.isfinite(values).all(), "the logits are no numbers"
    return {
        **{f"{stage}_seconds": seconds for stage, seconds in stages.items()},
        "compile_cpu_seconds": busy,
        **{f"{stage}_peak_gib": peak / 2**30 for stage, peak in peaks.items()},
        "sum_of_logits": float(np.abs(values).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1.1b", "7b"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--constants", action="store_true", help="weights as constants")
    parser.add_argument("--folder", type=Path, help="where files are written, and kept")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.file:
        (engine,) = arguments.engines
        constants = bool(arguments.constants)
        print(json.dumps(measure(arguments.file, engine, arguments.tokens, constants=constants)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for size in arguments.sizes:
            path = folder / f"random-{size}.gguf"
            if not path.exists():
                write_model(path, size)
            file_gib = path.stat().st_size / 2**30
            for engine in arguments.engines:
                command = [sys.executable, __file__, "--file", str(path), "--engines", engine]
                command += ["--tokens", str(arguments.tokens)]
                command += ["--constants"] * arguments.constants
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(output.stdout.splitlines()[-1])
                results[f"{size} {engine}"] = {"file_gib": file_gib, **found}
                print(f"{size}, {engine}: a file of {file_gib:.2f} GiB")
                for name, value in found.items():
                    print(f"  {name:19} {value:9.2f}")
                bound = results[f"{size} {engine}"]["bound_gib"] = 1.6 * file_gib + 1
                print(f"  {'bound_gib':19} {bound:9.2f} (1.6 times the file and 1 GiB)")
            if not arguments.folder:
                path.unlink()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
