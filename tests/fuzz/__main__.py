"""``python -m tests.fuzz``: more cases than CI has time for.

Prints a table of boundaries and outcomes, and what was not in order; exit code 1 if anything was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = ("fuzz", "frontend", "models", "report", "target", "tuning")
sys.path[:0] = [str(TESTS / name) for name in FOLDERS]

from fuzz_boundaries import BOUNDARIES  # noqa: E402
from fuzz_driver import GOOD, prepare, run  # noqa: E402


def shares(names: list[str], cases: int) -> dict[str, int]:
    """Cases of each boundary, at least one."""
    total = sum(BOUNDARIES[name].share for name in names)
    return {name: max(1, round(cases * BOUNDARIES[name].share / total)) for name in names}


def main() -> int:
    """Run the cases; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=500, help="over all boundaries")
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    parser.add_argument("--boundary", action="append", choices=tuple(BOUNDARIES), help="only this")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat")
    parser.add_argument("--kills", type=int, default=0, help="kill commands so often, too")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    names = arguments.boundary or list(BOUNDARIES)
    faults: list[str] = []
    columns = (*GOOD, "untyped", "wrong", "leftover", "memory", "crash", "hang")
    print(f"{'':18}" + "".join(f"{name:>9}" for name in columns), flush=True)
    with tempfile.TemporaryDirectory(prefix="sparqle-fuzz-") as work:
        prepare(names, Path(work))
        for name, count in shares(names, arguments.cases).items():
            cases = range(arguments.first, arguments.first + count)
            report = run(name, cases, arguments.seed, Path(work), deadline)
            faults += report.faults
            cells = "".join(f"{report.counts[column]:9}" for column in columns)
            print(f"{name:18}{cells}", flush=True)
    if arguments.kills:
        from fuzz_kills import kill_all

        faults += kill_all(arguments.kills, arguments.seed, deadline)
    print("\n".join(faults) or "all in order")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
