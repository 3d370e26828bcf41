"""``sparqle report``: a finished run as a page, Markdown, CSV, pictures or JSON."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.files import all_or_nothing


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    report = shared.add_command(
        commands,
        "report",
        _report,
        files=("html", "markdown"),
        folders=("csv", "pictures"),
        help="show what a run found: a page with pictures, Markdown, CSV, JSON",
        description="Show what `sparqle run` found: figures, pictures and tables as one page that "
        "opens without a network, as Markdown, CSV files, PNG files or JSON. Without any of "
        "these, the tables are printed.",
    )
    report.add_argument(
        "--run",
        metavar="FILE",
        help="what `sparqle run --json FILE` wrote; without it, the built-in model is run first",
    )
    report.add_argument(
        "--html",
        metavar="FILE",
        help="write one self-contained page; - writes it to standard output",
    )
    report.add_argument(
        "--markdown",
        metavar="FILE",
        help="write texts and tables as Markdown; - writes them to standard output",
    )
    report.add_argument("--csv", metavar="DIR", help="write every table as a CSV file")
    report.add_argument("--pictures", metavar="DIR", help="write every picture as a PNG file")
    return report


def _report(arguments: argparse.Namespace) -> None:
    if arguments.html or arguments.pictures:
        from sparqle_tvm.report.pictures import require_matplotlib

        require_matplotlib()
    from sparqle_tvm.report.build import build_report
    from sparqle_tvm.results.run import RunResult

    if arguments.run:
        run = RunResult.load(arguments.run)
    else:
        from sparqle_tvm.studies.run import run_model

        run = run_model()
    document = build_report(run)
    outputs = (arguments.html, arguments.markdown, arguments.csv, arguments.pictures)
    if not any((*outputs, arguments.json)):
        from sparqle_tvm.report.writers import print_document

        print_document(document)
    with all_or_nothing():
        _write(arguments, document)


def _write(arguments: argparse.Namespace, document: Any) -> None:
    from tqdm import tqdm

    from sparqle_tvm.report import writers

    if arguments.json:
        shared.emit_json(arguments.json, document.to_json())
    if arguments.markdown:
        shared.emit_text(arguments.markdown, writers.to_markdown(document))
    if arguments.csv:
        writers.write_csv(document, arguments.csv)
    count = len(document.pictures) * sum(map(bool, (arguments.html, arguments.pictures)))
    with tqdm(total=count, unit="picture", desc="draw", leave=False, disable=not count) as bar:
        if arguments.html:
            from sparqle_tvm.report.html import to_html

            shared.emit_text(arguments.html, to_html(document, progress=bar.update))
        if arguments.pictures:
            writers.write_pictures(document, arguments.pictures, progress=bar.update)
