"""Write the energy tables as Markdown.

python benchmarks/energy_tables.py docs/energy.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparqle_tvm.report.energy_tables import energy_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", nargs="?", help="file; standard output if not given")
    arguments = parser.parse_args()
    text = energy_markdown()
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
