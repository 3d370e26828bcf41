"""How long a page takes from a finished run, and how large it is.

    python benchmarks/bench_report.py [RUN.json]

Without a file, the built-in model is run first (analytically, which takes minutes the first time).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPARQLE = [sys.executable, "-c", "import sys; from sparqle_tvm.cli import main; sys.exit(main())"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run.json", Path(folder) / "page.html"
        if len(sys.argv) > 1:
            run = Path(sys.argv[1])
        else:
            call = [*SPARQLE, "run", "--engine", "analytical", "--json", str(run)]
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        start = time.perf_counter()
        subprocess.run([*SPARQLE, "report", str(run), "--html", str(page)], check=True)
        seconds = time.perf_counter() - start
        print(f"report of {run.name}: {seconds:.1f} s with start-up (at most 10)")
        print(f"page: {page.stat().st_size / 1e6:.2f} MB (less than 5)")


if __name__ == "__main__":
    main()
