"""How long a sweep of 1,000 points takes, cold: Llama2-7B over sparsity, length and bandwidth.

Every length and bandwidth needs tiles of its own, so 100 of the points search for them. The command
``sparqle sweep`` runs in a process of its own; its time includes the start of all processes.

    python benchmarks/bench_sweep.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AXES = (
    "seq=128,256,384,512,768,1024,1536,2048,3072,4096",
    "dram_bytes_per_cycle=4,8,16,24,32,48,64,96,128,256",
    "msb_sparsity=0:0.9:10",
)
LIMIT_SECONDS = 60


def main() -> None:
    command = [str(Path(sys.executable).parent / "sparqle"), "sweep", "--fix", "model=llama2-7b"]
    for phase in ("prefill", "decode"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "sweep.csv"
            fixed = ["--fix", f"phase={phase}", "--out", str(out)]
            axes = [part for axis in AXES for part in ("--axis", axis)]
            start = time.perf_counter()
            subprocess.run([*command, *fixed, *axes], check=True, capture_output=True)
            seconds = time.perf_counter() - start
            points = len(out.read_text().splitlines()) - 1
        cores = len(os.sched_getaffinity(0))
        print(
            f"{phase}: {points} points in {seconds:.1f} s on {cores} cores "
            f"({1e3 * seconds * cores / points:.0f} ms a point and core; aim {LIMIT_SECONDS} s)"
        )


if __name__ == "__main__":
    main()
