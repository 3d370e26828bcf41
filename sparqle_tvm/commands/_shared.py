"""What commands share: arguments of the same meaning, and where results go."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import write_json

if TYPE_CHECKING:
    from sparqle_tvm.report.document import Document
    from sparqle_tvm.target.accelerator import Accelerator
    from sparqle_tvm.target.cost.energy_table import EnergyTable

STANDARD_OUTPUT = "-"


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options, but where there is none the help text says what happens."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or isinstance(action.default, bool)
        return action.help if unset else super()._get_help_string(action)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], **texts: Any
) -> argparse.ArgumentParser:
    """Add the parser of a command, which `run` runs."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, **{"formatter_class": DefaultsFormatter, **texts}
    )
    parser.set_defaults(command=run)
    return parser


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--verbose``."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the result as JSON; - writes only it to standard output",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show what passes skip, and tracebacks"
    )


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument(
        "--model", default="smollm2", help="smollm2 (fetched on first use) or a GGUF file"
    )


def add_target_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--target``, with its help text."""
    parser.add_argument("--target", default="sparqle/edge", help=text)


def add_engine_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--engine``, with its help text."""
    parser.add_argument(
        "--engine", choices=("simulator", "analytical"), default="simulator", help=text
    )


def add_importance_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--importance``, with its help text."""
    parser.add_argument("--importance", choices=("weights", "fisher"), default="weights", help=text)


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--node`` and ``--memory``."""
    parser.add_argument("--node", default="7nm", help="technology of the energy table: 45nm or 7nm")
    parser.add_argument(
        "--memory",
        help="memory of the energy table: lpddr4, ddr4, hbm2 or lpddr5 (an estimate); if not "
        "given, that of the target",
    )


def energy_table_of(arguments: argparse.Namespace, accelerator: Accelerator) -> EnergyTable:
    """The energy table that the arguments ask for.

    Raises
    ------
    InvalidArgumentError
        If there is no such node or memory.
    """
    from sparqle_tvm.target.cost.energy_table import default_table, energy_table

    if arguments.memory is None:
        return default_table(accelerator, arguments.node)
    return energy_table(arguments.node, arguments.memory)


def check_writable(path: str | None) -> None:
    """Refuse a file that cannot be written before minutes are spent on its content.

    Raises
    ------
    InvalidArgumentError
        If the folder is missing or not writable, or the path is a folder.
    """
    if path is None or path == STANDARD_OUTPUT:
        return
    folder = Path(path).absolute().parent
    if not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise InvalidArgumentError(f"{path} cannot be written: no such folder, or no permission")


def show(path: str | None, document: Callable[[], Document], data: Callable[[], Any]) -> None:
    """Print a document, unless only JSON is wanted; write the data, if ``--json`` has a path."""
    if path != STANDARD_OUTPUT:
        from sparqle_tvm.report.writers import print_document

        print_document(document())
    if path:
        emit_json(path, data())


def add_document_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files that a document can be written to."""
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page")
    parser.add_argument(
        "--markdown",
        metavar="FILE",
        help="write texts and tables as Markdown; - writes them to standard output",
    )
    parser.add_argument("--csv", metavar="DIR", help="write every table as a CSV file")
    parser.add_argument("--pictures", metavar="DIR", help="write every picture as a PNG file")


def check_document_arguments(arguments: argparse.Namespace) -> None:
    """Refuse files of `add_document_arguments` that cannot be written, before work is spent.

    Raises
    ------
    InvalidArgumentError
        As `check_writable`.
    MissingExtraError
        If there are pictures to draw and no matplotlib.
    """
    for path in (arguments.html, arguments.markdown):
        check_writable(path)
    if arguments.html or arguments.pictures:
        from sparqle_tvm.report.pictures import require_matplotlib

        require_matplotlib()


def documents_wanted(arguments: argparse.Namespace) -> bool:
    """Whether any of the files of `add_document_arguments` is asked for."""
    return any((arguments.html, arguments.markdown, arguments.csv, arguments.pictures))


def deliver(
    arguments: argparse.Namespace, document: Callable[[], Document], data: Callable[[], Any]
) -> None:
    """As `show`, and write the files of `add_document_arguments` that are asked for.

    Nothing else is printed if Markdown goes to standard output.
    """
    made = None
    if STANDARD_OUTPUT not in (arguments.json, arguments.markdown):
        from sparqle_tvm.report.writers import print_document

        made = document()
        print_document(made)
    if arguments.json:
        emit_json(arguments.json, data())
    if documents_wanted(arguments):
        write_documents(arguments, made or document())


def write_documents(arguments: argparse.Namespace, document: Document) -> None:
    """Write the files of `add_document_arguments` that are asked for."""
    from tqdm import tqdm

    from sparqle_tvm.report import writers

    if arguments.markdown == STANDARD_OUTPUT:
        print(writers.to_markdown(document), end="")
    elif arguments.markdown:
        writers.write_markdown(document, arguments.markdown)
    if arguments.csv:
        writers.write_csv(document, arguments.csv)
    count = len(document.pictures) * sum(map(bool, (arguments.html, arguments.pictures)))
    with tqdm(total=count, unit="picture", desc="draw", leave=False, disable=not count) as bar:
        if arguments.html:
            from sparqle_tvm.report.html import write_html

            write_html(document, arguments.html, progress=bar.update)
        if arguments.pictures:
            writers.write_pictures(document, arguments.pictures, progress=bar.update)


def emit_json(path: str, data: Any) -> None:
    """Write `data` as JSON to a file, or to standard output if `path` is ``-``."""
    if path == STANDARD_OUTPUT:
        print(json.dumps(data, indent=2, allow_nan=False))
    else:
        write_json(path, data)
