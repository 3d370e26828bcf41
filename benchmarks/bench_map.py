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
from dataclasses import replace
from pathlib import Path

from compare_with_paper import ROOT, write_documents

from sparqle_tvm.files import plain, write_json
from sparqle_tvm.report.document import Document
from sparqle_tvm.report.paper import MODELS
from sparqle_tvm.report.paper_map import (
    PREFILL_TOKENS,
    PaperMap,
    machines,
    map_section,
    paper_map,
    points_of,
)
from sparqle_tvm.report.writers import print_document
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.studies.sweep import Sweep, run_sweep
from sparqle_tvm.target.accelerator import PRESETS

DATA = ROOT / "sparqle_tvm" / "report" / "data" / "paper_map.json"


def with_same_tiles(found: PaperMap) -> PaperMap:
    """Add what the closest machines save of the prefill's energy with the same tiles for both."""
    closest = {}
    for part, (first, *others) in found.closest.items():
        machine = replace(PRESETS["sparqle/edge"], **first.machine.fields)
        saved = tuple(
            estimate(model, "prefill", seq=PREFILL_TOKENS, target=machine).same_tiles[part]
            for model in MODELS
        )
        same = {part: tuple(round(share, 4) for share in saved)}
        closest[part] = (replace(first, same_tiles=same), *others)
    return replace(found, closest=closest)


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
    found = with_same_tiles(paper_map(wanted, result.rows))
    write_json(DATA, plain(found), indent=1)
    write_documents(ROOT / "docs")
    print_document(Document("Where it pays", "", sections=(map_section(found),)))
    print(f"{len(result.rows)} estimates in {seconds:.0f} s, {result.failed} without a result")


if __name__ == "__main__":
    main()
