"""``sparqle target``: the accelerators that there are, and one of your own."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.errors import InvalidArgumentError


def add(commands: Any) -> list[argparse.ArgumentParser]:
    """Add the command, and the commands below it, to the parser."""
    target = commands.add_parser(
        "target",
        formatter_class=shared.DefaultsFormatter,
        epilog=shared.examples(
            "target show sparqle/edge",
            "target new mine.toml --from sparqle/edge",
            "target check mine.toml",
        ),
        help="list, show, describe and check accelerators",
        description="The accelerators that come with the package, and one of your own: a TOML "
        "file for --target.",
    )
    below = target.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listed = shared.add_command(
        below,
        "list",
        _list,
        help="the presets in a line each",
        description="List the accelerators that come with the package.",
    )
    show = shared.add_command(
        below,
        "show",
        _show,
        help="every field with value, unit and meaning",
        description="Show every field of an accelerator with its value, unit and meaning.",
    )
    _add_name(show)
    new = shared.add_command(
        below,
        "new",
        _new,
        files=("file",),
        help="write a commented file to change",
        description="Write a commented accelerator file: all fields of another one, with units "
        "and meanings, and the changes given.",
    )
    new.add_argument("file", metavar="FILE.toml", help="file to write")
    new.add_argument(
        "--set",
        dest="changes",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="what is different: rows=32 dram_bytes_per_cycle=25.6",
    )
    new.add_argument(
        "--from",
        dest="base",
        default="sparqle/edge",
        metavar="NAME|FILE",
        help="what it begins with: a preset or an accelerator file",
    )
    check = shared.add_command(
        below,
        "check",
        _check,
        help="peak rates, what fits, tiles, and what is out of balance",
        description="Check an accelerator: peak rates, what fits, the tiles that are chosen for "
        "layers of a model, and what is out of balance when that model runs.",
    )
    _add_name(check)
    shared.add_shape_argument(check, "llama2-7b")
    check.add_argument(
        "--seq", type=int, default=2048, help="tokens of the prefill, and before the decode"
    )
    shared.add_document_arguments(check)
    return [listed, show, new, check]


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="NAME|FILE.toml", help="a preset, or a file")


def _list(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.files import plain
    from sparqle_tvm.report.target import targets_document
    from sparqle_tvm.target.accelerator import PRESETS

    shared.show(
        arguments.json,
        lambda: targets_document(PRESETS),
        lambda: {"kind": "targets", "targets": plain(list(PRESETS.values()))},
    )


def _show(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.files import plain
    from sparqle_tvm.report.target import target_document
    from sparqle_tvm.target.accelerator import Accelerator, field_texts

    accelerator = Accelerator.from_target(arguments.target)
    shared.show(
        arguments.json,
        lambda: target_document(accelerator),
        lambda: {
            "kind": "target",
            "accelerator": plain(accelerator),
            "fields": plain(field_texts()),
        },
    )


def _new(arguments: argparse.Namespace) -> None:
    from dataclasses import replace
    from pathlib import Path

    from sparqle_tvm.files import plain, write_text
    from sparqle_tvm.target.accelerator import PRESETS, Accelerator, to_toml

    path = Path(arguments.file)
    if path.suffix != ".toml":
        raise InvalidArgumentError(f"{path}: the file has to end in .toml")
    if path.exists():
        raise InvalidArgumentError(f"{path} is there already; give another name, or remove it")
    base = Accelerator.from_target(arguments.base)
    accelerator = replace(base.changed(_changes(arguments.changes)), name=path.stem)
    write_text(path, to_toml(accelerator, arguments.base if arguments.base in PRESETS else ""))
    shared.emit_outcome(
        arguments.json,
        f"{path} written; now: sparqle target check {path}",
        {"kind": "target", "file": str(path), "accelerator": plain(accelerator)},
    )


def _changes(texts: list[str]) -> dict[str, Any]:
    """Fields and their new values, read as TOML where they are, else as text."""
    import tomllib

    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InvalidArgumentError(f"{text!r} is not of the form FIELD=VALUE")
        try:
            changes[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[name] = value
    return changes


def _check(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.target import check_document
    from sparqle_tvm.studies.target import check_target

    found = check_target(arguments.target, arguments.model, seq=arguments.seq)
    shared.deliver(arguments, lambda: check_document(found), found.to_json)
