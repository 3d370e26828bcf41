"""On which machines split precision saves what the paper reports: the map of docs/paper.md.

    python benchmarks/bench_map.py [--rows map.csv]

Estimates the paper's models on every machine of `sparqle_tvm.report.paper_map`, keeps the best of
each array and bandwidth in sparqle_tvm/report/data/paper_map.json, and writes docs/paper.md and its
pictures anew. A run that was killed goes on. To be run after the cost model, an energy table or the
default schedules have changed, after `compare_with_paper.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from compare_with_paper import ROOT, write_documents

from sparqle_tvm.files import plain, write_json
from sparqle_tvm.report.document import Document
from sparqle_tvm.report.paper_map import machines, map_section, paper_map, points_of
from sparqle_tvm.report.writers import print_document
from sparqle_tvm.studies.sweep import Sweep, run_sweep

DATA = ROOT / "sparqle_tvm" / "report" / "data" / "paper_map.json"


def main() -> None:
    """Estimate, keep, write, and print what is found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="map.csv", help="table of all estimates")
    parser.add_argument("--workers", type=int, help="processes (one for each core)")
    arguments = parser.parse_args()
    wanted = list(machines())
    start = time.perf_counter()
    result = run_sweep(
        Sweep(tuple(points_of(wanted))), Path(arguments.rows), workers=arguments.workers
    )
    seconds = time.perf_counter() - start
    found = paper_map(wanted, result.rows)
    write_json(DATA, plain(found), indent=1)
    write_documents(ROOT / "docs")
    print_document(Document("Where it pays", "", sections=(map_section(found),)))
    print(f"{len(result.rows)} estimates in {seconds:.0f} s, {result.failed} without a result")


if __name__ == "__main__":
    main()
