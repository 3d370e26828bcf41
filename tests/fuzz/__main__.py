"""``python -m tests.fuzz``: more cases than CI has time for.

Prints a table of boundaries and outcomes, and what was not in order; exit code 1 if anything was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = ("fuzz", "frontend", "models", "report", "target", "tuning")
sys.path[:0] = [str(TESTS / name) for name in FOLDERS]

from fuzz_boundaries import BOUNDARIES  # noqa: E402
from fuzz_driver import GOOD, Report, prepare, run  # noqa: E402

COLUMNS = (*GOOD, "untyped", "wrong", "leftover", "memory", "crash", "hang")


def line(name: str, counts: Counter[str]) -> str:
    """A line of the table."""
    return f"{name:18}" + "".join(f"{counts[column]:9}" for column in COLUMNS)


def shares(names: list[str], cases: int) -> dict[str, int]:
    """Cases of each boundary, at least one."""
    total = sum(BOUNDARIES[name].share for name in names)
    return {name: max(1, -(-cases * BOUNDARIES[name].share // total)) for name in names}


def main() -> int:
    """Run the cases; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=500, help="over all boundaries")
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    parser.add_argument("--boundary", action="append", choices=tuple(BOUNDARIES), help="only this")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat")
    parser.add_argument("--jobs", type=int, default=1, help="boundaries, or kills, at once")
    parser.add_argument("--kills", type=int, default=0, help="kill commands so often, too")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    names = arguments.boundary or list(BOUNDARIES)
    faults: list[str] = []
    print(f"{'':18}" + "".join(f"{name:>9}" for name in COLUMNS), flush=True)
    with tempfile.TemporaryDirectory(prefix="sparqle-fuzz-") as work:
        prepare(names, Path(work))
        counts = shares(names, arguments.cases)
        first = arguments.first

        def run_one(name: str) -> Report:
            cases = range(first, first + counts[name])
            return run(name, cases, arguments.seed, Path(work), deadline)

        total = Report()
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for name, report in zip(names, pool.map(run_one, names), strict=True):
                total.counts += report.counts
                faults += report.faults
                print(line(name, report.counts), flush=True)
        print(line("all", total.counts), flush=True)
    if arguments.kills:
        from fuzz_kills import kill_all

        faults += kill_all(arguments.kills, arguments.seed, arguments.jobs, deadline)
    print("\n".join(faults) or "all in order")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
