"""Time of ``sparqle run``: with nothing compiled yet, and with all compiled forms in the cache.

    python benchmarks/bench_run.py [--tokens 512] [--model smollm2] [--repeat 2] [--json FILE]

Each run is a process of its own, as a user starts it; its cache is a folder that is empty at first.
Prints the wall time of each stage, the wall time and the processor time of the process, and its
peak memory; of several runs with a full cache, the fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sparqle_tvm.models.builtin import BUILTIN_MODELS, CACHE_VARIABLE, fetch_builtin


def measure(model: str, tokens: int, cache: Path) -> dict[str, Any]:
    """One run: seconds of its stages, of all of it and of the processors, and peak memory."""
    result = cache / "result.json"
    command = [sys.executable, "-c", "from sparqle_tvm.cli import main; main()"]
    command += ["run", "--model", model, "--tokens", str(tokens), "--json", str(result)]
    begin = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        command,
        {**os.environ, CACHE_VARIABLE: str(cache)},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"sparqle run ended with {os.waitstatus_to_exitcode(status)}")
    stages = json.loads(result.read_text())["seconds"]
    return {
        "stages_seconds": stages,
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "cache_mib": sum(file.stat().st_size for file in cache.rglob("*.so")) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="smollm2 or a GGUF file")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=2, help="runs with a full cache")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache, model = Path(folder), arguments.model
        if model in BUILTIN_MODELS:
            path = fetch_builtin(model, progress=False)
            (cache / path.name).symlink_to(path)
        given = (model, arguments.tokens, cache)
        first = measure(*given)
        again = [measure(*given) for _ in range(arguments.repeat)]
    figures = {"first": first, "cached": min(again, key=lambda run: run["seconds"])}
    print(f"{'':22}" + "".join(f"{name:>10}" for name in figures))
    stages = {stage for run in figures.values() for stage in run["stages_seconds"]}
    for stage in sorted(stages, key=list(first["stages_seconds"]).index):
        found = [run["stages_seconds"].get(stage, 0) for run in figures.values()]
        print(f"{stage:22}" + "".join(f"{seconds:10.2f}" for seconds in found))
    for name in ("seconds", "cpu_seconds", "peak_gib", "cache_mib"):
        print(f"{name:22}" + "".join(f"{run[name]:10.2f}" for run in figures.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
