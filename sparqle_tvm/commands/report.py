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
    shared.add_document_arguments(report)
    return report


def _report(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.build import build_report
    from sparqle_tvm.results.analysis import load_result

    if arguments.run is not None:
        run = load_result(arguments.run)
    else:
        from sparqle_tvm.studies.run import run_model

        run = run_model()
    document = build_report(run)
    if not (arguments.json or shared.documents_wanted(arguments)):
        from sparqle_tvm.report.writers import print_document

        print_document(document)
    with all_or_nothing():
        if arguments.json:
            shared.emit_json(arguments.json, document.to_json())
        shared.write_documents(arguments, document)
