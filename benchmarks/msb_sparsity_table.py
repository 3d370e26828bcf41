"""Sum up the MSB digits of a run of SmolLM2-135M as the table that `sparqle estimate` transfers.

    sparqle run --engine analytical --json run.json
    python benchmarks/msb_sparsity_table.py run.json [--out FILE]

The table is stored with the package (``sparqle_tvm/models/data/msb_sparsity_smollm2.json``); a test
holds its format.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sparqle_tvm.models.sparsity import CLASSES, from_run, measured_file, summarize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="what sparqle run --json wrote")
    parser.add_argument("--out", default=str(measured_file()))
    parser.add_argument("--name", default="SmolLM2-135M-Instruct", help="of the model")
    arguments = parser.parse_args()
    run = json.loads(Path(arguments.run).read_text(encoding="utf-8"))
    layers = from_run(run, arguments.run)
    model, text = run["model"], run["text"]
    table = {
        "label": f"measured on {arguments.name}, {text['tokens']} tokens of {text['name']}",
        "command": "sparqle run --engine analytical --json run.json; "
        "python benchmarks/msb_sparsity_table.py run.json",
        "model_sha256": model["sha256"],
        "text": text,
        "layers": len(layers),
        "classes": CLASSES,
        "layer_types": summarize(layers),
    }
    # A line per class.
    lines = json.dumps(table, indent=1).replace(",\n    ", ", ").replace("[\n    ", "[")
    Path(arguments.out).write_text(lines.replace("\n   ]", "]") + "\n", encoding="utf-8")
    for kind, classes in table["layer_types"].items():
        means = ", ".join(f"{1 - sum(c) / len(c):.3f}" for c in classes)
        print(f"{kind:8} MSB sparsity by class: {means}")


if __name__ == "__main__":
    main()
