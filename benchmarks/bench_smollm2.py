"""SmolLM2-135M on the plain llvm path: time to import and build, memory, time of a prefill.

Each form of the model is built and run in a process of its own, so that peak memory is its own.

    python benchmarks/bench_smollm2.py [--tokens 512] [--repeat 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any


def measure(form: str, tokens: int, repeat: int) -> dict[str, Any]:
    """Import, build and run one form (``split`` or ``int8``) in this process."""
    import numpy as np

    import sparqle_tvm
    from sparqle_tvm.frontend.text import builtin_text, load_tokens
    from sparqle_tvm.models.builtin import fetch_builtin

    path = fetch_builtin("smollm2", progress=False)
    begin = time.perf_counter()
    model = sparqle_tvm.frontend.from_gguf(path, activations="int8", progress=False)
    imported, busy = time.perf_counter(), time.process_time()
    executable = sparqle_tvm.compile(
        model.template, "sparqle/edge", weights=model.weights, split=form == "split"
    )
    executable["prefill"]  # its machine code is emitted when a function is first asked for
    built, build_cpu_seconds = time.perf_counter(), time.process_time() - busy
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ids = np.array([load_tokens(model.tokenizer, builtin_text(), tokens)], dtype=np.int32)
    seconds = []
    for _ in range(repeat):
        cache = executable["create_cache"]()
        start = time.perf_counter()
        executable["prefill"](ids, cache)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    executable["decode"](ids[:, -1:], cache)
    return {
        "import_seconds": imported - begin,
        "build_seconds": built - imported,
        "build_cpu_seconds": build_cpu_seconds,
        "build_peak_gib": peak_bytes / 2**30,
        "prefill_seconds": min(seconds),
        "decode_seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--form", choices=("split", "int8"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(arguments.form, arguments.tokens, arguments.repeat)))
        return
    results: dict[str, Any] = {}
    for form in ("split", "int8"):
        command = [sys.executable, __file__, "--form", form]
        command += ["--tokens", str(arguments.tokens), "--repeat", str(arguments.repeat)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[form] = json.loads(output.splitlines()[-1])
        print(f"{form}:")
        for name, value in results[form].items():
            print(f"  {name:17} {value:8.2f}")
    ratio = results["split"]["prefill_seconds"] / results["int8"]["prefill_seconds"]
    results["prefill_ratio"] = ratio
    print(f"split prefill takes {ratio:.2f} times that of the int8 model (at most 4 is the aim)")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
