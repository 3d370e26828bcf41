"""``sparqle report``: what any command found as a page, Markdown, CSV, pictures or JSON."""

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
        epilog=shared.examples(
            "report run.json",
            "report run.json --html run.html --pictures pictures",
            "report prefill.json decode.json sweep.json --html all.html",
        ),
        help="show what a command found: a page with pictures, Markdown, CSV, JSON",
        description="Show what a command wrote with --json (run, generate, calibrate, pareto, "
        "estimate, sweep, tune, target check): figures, pictures and tables as one page that "
        "opens without a network, as Markdown, CSV files, PNG files or JSON. Without any of "
        "these, the tables are printed.",
    )
    report.add_argument(
        "results",
        nargs="*",
        metavar="FILE",
        help="what a command wrote with --json FILE, several of them for one page of all (a "
        "prefill, a decode and a sweep, say); without any, the built-in model is run first",
    )
    shared.add_document_arguments(report)
    return report


def _report(arguments: argparse.Namespace) -> None:
    kinds: list[str]
    if arguments.results:
        from sparqle_tvm.report.load import load_document
        from sparqle_tvm.report.several import together

        found = [load_document(path) for path in arguments.results]
        kinds, document = [kind for kind, _ in found], together([each for _, each in found])
    else:
        from sparqle_tvm.report.build import build_report
        from sparqle_tvm.results.run import KIND
        from sparqle_tvm.studies.run import run_model

        kinds, document = [KIND], build_report(run_model())
    if not (arguments.json or shared.documents_wanted(arguments)):
        from sparqle_tvm.report.writers import print_document

        print_document(document)
    with all_or_nothing():
        if arguments.json:
            of = kinds if len(kinds) > 1 else kinds[0]
            shared.emit_json(arguments.json, {"of": of, **document.to_json()})
        shared.write_documents(arguments, document)
