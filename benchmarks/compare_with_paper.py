"""Write docs/paper.md, docs/paper.png and the curves that reports show beside the paper's ranges.

    python benchmarks/compare_with_paper.py

To be run after the cost model, an energy table or a preset has changed; a test says so.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from sparqle_tvm.files import write_json
from sparqle_tvm.report.comparison import (
    BATCHES,
    CONTEXTS,
    decode_savings,
    paper_document,
    published_curves,
    stored_curves,
    stored_decode,
    to_json,
)
from sparqle_tvm.report.paper import MODELS
from sparqle_tvm.report.paper_map import stored_map
from sparqle_tvm.report.pictures.paper_map import draw_paper_map
from sparqle_tvm.report.pictures.reduction import draw_reduction
from sparqle_tvm.report.pictures.style import save_png
from sparqle_tvm.report.writers import write_markdown
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.energy_table import default_table

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "sparqle_tvm" / "report" / "data" / "paper.json"


def write_documents(folder: Path) -> None:
    """Write the Markdown file and its pictures from the stored curves and map."""
    curves = {name: stored_curves(preset) or [] for name, preset in PRESETS.items()}
    tables = {name: default_table(preset).name for name, preset in PRESETS.items()}
    found = stored_map()
    write_markdown(paper_document(curves, tables, stored_decode(), found), folder / "paper.md")
    if found is not None:
        save_png(draw_paper_map(found), folder / "paper_map.png", dpi=100)
    save_png(draw_reduction(curves["sparqle/edge"]), folder / "paper.png", dpi=100)


def main() -> None:
    """Estimate, and write everything."""
    steps = 2 * len(MODELS) + len(MODELS) * len(CONTEXTS) * len(BATCHES)
    with tqdm(total=steps * len(PRESETS), unit="model") as bar:
        found = {name: to_json(published_curves(name, progress=bar.update)) for name in PRESETS}
        decode = [one for p in PRESETS.values() for one in decode_savings(p, progress=bar.update)]
    found["decode"] = to_json(decode)
    write_json(DATA, found, indent=1)
    write_documents(ROOT / "docs")


if __name__ == "__main__":
    main()
