"""What commands share: arguments of the same meaning, and where results go."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.escaping import visible
from sparqle_tvm.files import (
    all_or_nothing,
    require_folder,
    require_writable,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from sparqle_tvm.report.document import Document
    from sparqle_tvm.runtime.cache import ExecutableCache
    from sparqle_tvm.target.accelerator import Accelerator
    from sparqle_tvm.target.cost.energy_table import EnergyTable

STANDARD_OUTPUT = "-"
MODEL_NAMES = "smollm2-135m, bitnet-3b, llama2-7b, llama2-13b, llama2-70b, llama3-8b, qwen2.5-7b"
"""Names of `models.shapes.MODELS`, which takes a while to import."""


EXAMPLES = "examples:\n"
"""How a text begins whose lines stay as they are."""


def examples(*lines: str) -> str:
    """Commands to begin with, a line each, as the end of a help text."""
    return EXAMPLES + "\n".join(f"  sparqle {line}" for line in lines) + "\n"


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options, but where there is none the help text says what happens."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or isinstance(action.default, bool)
        return action.help if unset else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    files: Sequence[str] = (),
    folders: Sequence[str] = (),
    kept: Callable[[argparse.Namespace], str] | None = None,
    **texts: Any,
) -> argparse.ArgumentParser:
    """Add the parser of a command.

    Parameters
    ----------
    commands : subparsers of argparse
        What it is added to.
    name : str
        Its name.
    run : callable
        Runs it.
    files, folders : sequence of str
        Arguments besides ``json`` that name files to write, and folders to write files into.
    kept : callable, optional
        Says after an interruption what is kept, and how to go on; by default, that nothing is.
    **texts
        Help and the like, as argparse takes them.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, **{"formatter_class": DefaultsFormatter, **texts}
    )
    parser.set_defaults(command=run, files=("json", *files), folders=tuple(folders), kept=kept)
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


def add_shape_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--model`` where only its sizes are needed."""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME|FILE",
        help=f"a published model ({MODEL_NAMES}), a GGUF file, or a config.json of Hugging Face "
        "or its folder",
    )


def add_target_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--target``, with its help text."""
    parser.add_argument("--target", default="sparqle/edge", help=text)


def add_engine_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--engine``, with its help text."""
    parser.add_argument(
        "--engine", choices=("simulator", "analytical"), default="simulator", help=text
    )


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-cache``."""
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="compile anew, and keep nothing; else what was compiled once is found again, see "
        "sparqle cache",
    )


def cache_of(arguments: argparse.Namespace) -> ExecutableCache | None:
    """Where compiled modules are kept, None if the arguments say nowhere."""
    if arguments.no_cache:
        return None
    from sparqle_tvm.runtime.cache import ExecutableCache

    return ExecutableCache()


def add_attention_argument(
    parser: argparse.ArgumentParser, text: str, *, default: str | None = None
) -> None:
    """Add ``--attention``, with its help text."""
    parser.add_argument("--attention", choices=("int8", "float"), default=default, help=text)


def add_kv_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--kv``."""
    parser.add_argument(
        "--kv",
        default="int8",
        metavar="STORAGE",
        help="how attention in integers stores keys and values: int8, planes (exact, what is "
        "smaller), planes:F or planes:F,G (factors on the scales of keys and values), int6, int5, "
        "int4; of run and generate planes:1%% too: the smallest of what the calibration measured "
        "within that increase of perplexity",
    )


def add_workers_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers`` and ``--dask``."""
    parser.add_argument("--workers", type=int, help="processes (one for each core)")
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="Dask scheduler whose workers do it, tcp://host:port"
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


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written, before minutes are spent on their content.

    Raises
    ------
    InvalidArgumentError
        If a file or folder cannot be written, a file would be written twice or take the place of
        an input, or more than one output goes to standard output.
    MissingExtraError
        If there are pictures to draw and no matplotlib.
    """
    given = vars(arguments)
    named = {name: given[name] for name in arguments.files if given[name] is not None}
    printed = [f"--{name}" for name, path in named.items() if path == STANDARD_OUTPUT]
    if len(printed) > 1:
        raise InvalidArgumentError(f"{' and '.join(printed)}: only one goes to standard output")
    files = {name: path for name, path in named.items() if path != STANDARD_OUTPUT}
    seen: dict[str, str] = {
        os.path.realpath(value): name
        for name, values in given.items()
        if name not in named
        for value in (values if isinstance(values, list) else [values])
        if isinstance(value, str) and os.path.isfile(value)
    }
    inputs = set(seen.values())
    for name, path in files.items():
        require_writable(path)
        place = os.path.realpath(path)
        if other := seen.get(place):
            what = "read by" if other in inputs else "written by"
            raise InvalidArgumentError(f"--{name} {path}: this file is {what} {other}, too")
        if os.path.isfile(place) or not os.path.exists(place):
            seen[place] = name
    for name in arguments.folders:
        if given[name] is not None:
            require_folder(given[name])
    if named.get("html") or vars(arguments).get("pictures"):
        from sparqle_tvm.report.pictures import require_matplotlib

        require_matplotlib()


def show(path: str | None, document: Callable[[], Document], data: Callable[[], Any]) -> None:
    """Print a document, unless only JSON is wanted; write the data, if ``--json`` has a path."""
    if path:
        emit_json(path, data())
    if path != STANDARD_OUTPUT:
        from sparqle_tvm.report.writers import print_document

        print_document(document())


def print_text(text: str) -> None:
    """Print lines; names in them cannot steer the terminal."""
    print("\n".join(map(visible, text.splitlines())))


def emit_outcome(path: str | None, text: str, data: Any) -> None:
    """Print a line, unless only JSON is wanted; write the data, if ``--json`` has a path."""
    if path:
        emit_json(path, data)
    if path != STANDARD_OUTPUT:
        print_text(text)


def emit_text(path: str, text: str) -> None:
    """Write text to a file, or to standard output if `path` is ``-``."""
    if path == STANDARD_OUTPUT:
        print(text, end="")
    else:
        write_text(path, text)


def add_document_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files that a document can be written to."""
    parser.set_defaults(
        files=(*parser.get_default("files"), "html", "markdown"),
        folders=(*parser.get_default("folders"), "csv", "pictures"),
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one self-contained page; - writes it to standard output",
    )
    parser.add_argument(
        "--markdown",
        metavar="FILE",
        help="write texts and tables as Markdown; - writes them to standard output",
    )
    parser.add_argument("--csv", metavar="DIR", help="write every table as a CSV file")
    parser.add_argument("--pictures", metavar="DIR", help="write every picture as a PNG file")


def documents_wanted(arguments: argparse.Namespace) -> bool:
    """Whether any of the files of `add_document_arguments` is asked for."""
    return any((arguments.html, arguments.markdown, arguments.csv, arguments.pictures))


def deliver(
    arguments: argparse.Namespace, document: Callable[[], Document], data: Callable[[], Any]
) -> None:
    """As `show`, and write the files of `add_document_arguments` that are asked for.

    Nothing else is printed if one of them goes to standard output. All are written, or none.
    """
    made = None
    if STANDARD_OUTPUT not in (arguments.json, arguments.markdown, arguments.html):
        from sparqle_tvm.report.writers import print_document

        made = document()
        print_document(made)
    with all_or_nothing():
        if arguments.json:
            emit_json(arguments.json, data())
        if documents_wanted(arguments):
            write_documents(arguments, made or document())


def write_documents(arguments: argparse.Namespace, document: Document) -> None:
    """Write the files of `add_document_arguments` that are asked for."""
    from sparqle_tvm.progress import progress_bar
    from sparqle_tvm.report import writers

    if arguments.markdown:
        emit_text(arguments.markdown, writers.to_markdown(document))
    if arguments.csv:
        writers.write_csv(document, arguments.csv)
    count = len(document.pictures) * sum(map(bool, (arguments.html, arguments.pictures)))
    with progress_bar(progress=count > 0, total=count, unit="picture", desc="draw") as bar:
        if arguments.html:
            from sparqle_tvm.report.html import to_html

            emit_text(arguments.html, to_html(document, progress=bar.update))
        if arguments.pictures:
            writers.write_pictures(document, arguments.pictures, progress=bar.update)


def emit_json(path: str, data: Any) -> None:
    """Write `data` as JSON to a file, or to standard output if `path` is ``-``."""
    if path == STANDARD_OUTPUT:
        print(json.dumps(data, indent=2, allow_nan=False))
    else:
        write_json(path, data)
