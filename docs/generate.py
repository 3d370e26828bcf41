"""Pages of the reference that are made of code: commands, passes, instructions, results.

Each is a Markdown file in `generated/`, beside copies of the tutorials and of the documents that
stand at the top of the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import drawings
import msgspec
import tvm

from sparqle_tvm import cli, passes
from sparqle_tvm.compiler import Options, phases
from sparqle_tvm.results import (
    analysis,
    calibration,
    estimate,
    generation,
    losses,
    run,
    target,
    tuning,
)
from sparqle_tvm.results.analysis import Analysis
from sparqle_tvm.results.calibration import CalibrationSummary
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.form import Stored
from sparqle_tvm.results.generation import Generation
from sparqle_tvm.results.losses import ParetoResult
from sparqle_tvm.results.run import RunResult
from sparqle_tvm.results.target import TargetCheck
from sparqle_tvm.results.tuning import TuningSummary
from sparqle_tvm.studies import sweep
from sparqle_tvm.studies.sweep.as_json import CrossingsContent, SweepContent
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.header import Engine

RESULTS: dict[str, tuple[type, str]] = {
    "sparqle run": (RunResult, run.KIND),
    "sparqle run --model model.onnx": (Analysis, analysis.KIND),
    "sparqle generate": (Generation, generation.KIND),
    "sparqle estimate": (Estimate, estimate.KIND),
    "sparqle sweep": (SweepContent, sweep.KIND),
    "sparqle sweep --find": (CrossingsContent, sweep.KIND_OF_CROSSINGS),
    "sparqle tune": (TuningSummary, tuning.KIND),
    "sparqle calibrate": (CalibrationSummary, calibration.KIND),
    "sparqle pareto": (ParetoResult, losses.KIND),
    "sparqle target check": (TargetCheck, target.KIND),
}
"""What ``--json`` of a command writes, and its kind; ``estimates`` are a list of estimates."""
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
HELP_COLUMNS = 80


def write_all(docs: Path) -> None:
    """Write all pages and pictures into `docs/generated`."""
    folder = docs / "generated"
    folder.mkdir(exist_ok=True)
    pages = {
        "commands": commands_page(),
        "passes": passes_page(),
        "instructions": instructions_page(),
        "results": results_page(folder),
    }
    for name, text in pages.items():
        _write(folder / f"{name}.md", text)
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (docs.parent / f"{name}.md").read_text(encoding="utf-8")
        # Links from the top of the repository into docs/.
        _write(folder / f"{name.lower()}.md", re.sub(r"\]\(docs/", "](../", text))
    tutorials = folder / "tutorials"
    tutorials.mkdir(exist_ok=True)
    for notebook in sorted((docs.parent / "tutorials").glob("*.ipynb")):
        if notebook.read_bytes() != _bytes_of(tutorials / notebook.name):
            shutil.copy(notebook, tutorials)
    for name, svg in drawings.all_drawings():
        _write(
            folder / f"{name}.svg.md", f'```{{raw}} html\n<div class="drawing">{svg}</div>\n```\n'
        )


def _write(path: Path, text: str) -> None:
    """Write a file that is not yet so: Sphinx reads again what is newer."""
    if text.encode() != _bytes_of(path):
        path.write_text(text, encoding="utf-8")


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


# Commands


def commands_page() -> str:
    """The help of every command, as it prints it."""
    parser = cli._parser()
    parts = [
        "# Command line",
        "Every command takes `--json FILE` (`-` for standard output) and `--verbose`. Exit codes: "
        "0; 2 after an error, in one line; 128 and the number of the signal that interrupted it.",
        *_command("sparqle", parser, 2),
    ]
    return "\n\n".join(parts) + "\n"


def _command(name: str, parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}"
    formatter = parser.formatter_class
    parser.formatter_class = _Fixed.like(formatter)
    yield f"```text\n{parser.format_help().rstrip()}\n```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner, sub in action.choices.items():
                yield from _command(f"{name} {inner}", sub, min(level + 1, 4))


class _Fixed:
    """A formatter of help that does not look at the width of a terminal."""

    @staticmethod
    def like(formatter: type[argparse.HelpFormatter]) -> Any:
        return lambda prog: formatter(prog, width=HELP_COLUMNS)


# Passes


def passes_page() -> str:
    """The passes of every phase in their order, then the others, with their docstrings."""
    parts = [
        "# Passes",
        "Each works alone in a `tvm.transform.Sequential`: "
        "`sparqle_tvm.passes.SplitPrecision(report=report)(mod)`. The pipeline has them in these "
        "phases, in this order.",
    ]
    options = Options(engine="simulator", attention="int8", accelerator=PRESETS["sparqle/edge"])
    seen: set[str] = set()
    for phase, members in phases(options).items():
        ours = [one for one in dict.fromkeys(type(each) for each in members) if _is_ours(one)]
        ours = [one for one in ours if one.__name__ not in seen]
        seen.update(one.__name__ for one in ours)
        if ours:
            parts.append(f"## Phase `{phase}`")
            parts += [_pass_text(one) for one in ours]
    others = [
        value
        for name in passes.__all__
        if _is_ours(value := getattr(passes, name)) and value.__name__ not in seen
    ]
    parts.append("## Only where they are asked for")
    parts += [_pass_text(one) for one in others]
    return "\n\n".join(parts) + "\n"


def _is_ours(found: Any) -> bool:
    return (
        inspect.isclass(found)
        and issubclass(found, tvm.transform.Pass)
        and found.__module__.startswith("sparqle_tvm.passes")
    )


def _pass_text(found: type) -> str:
    return f"### {found.__name__}\n\n{markdown_of(inspect.getdoc(found) or '')}"


def markdown_of(docstring: str) -> str:
    """A docstring of ours as Markdown: ``code``, blocks after ``::``, numpydoc sections."""
    lines, out, index = docstring.splitlines(), [], 0
    while index < len(lines):
        line = lines[index]
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if following and set(following) == {"-"} and len(following) == len(line):
            rows, index = _section(lines, index + 2)
            out += ["", f"**{line}**", "", *rows, ""]
            continue
        if line.endswith("::"):
            block, index = _indented(lines, index + 1)
            out += [line[:-1], "", "```python", *block, "```", ""]
            continue
        out.append(line.replace("``", "`"))
        index += 1
    return "\n".join(out).strip()


def _indented(lines: Sequence[str], index: int) -> tuple[list[str], int]:
    block = []
    while index < len(lines) and (not lines[index] or lines[index].startswith(" ")):
        block.append(lines[index])
        index += 1
    return textwrap.dedent("\n".join(block)).strip("\n").splitlines(), index


def _section(lines: Sequence[str], index: int) -> tuple[list[str], int]:
    """The entries of a numpydoc section as a list."""
    rows = []
    while index < len(lines):
        line = lines[index]
        after = lines[index + 1] if index + 1 < len(lines) else ""
        underlined = bool(after) and set(after) == {"-"} and len(after) == len(line)
        if line and (underlined or (line.endswith("::") and not line.startswith(" "))):
            break
        index += 1
        if not line:
            continue
        if not line.startswith(" "):
            name, _, kind = line.partition(" : ")
            rows.append(f"- `{name}`" + (f" ({_literal(kind)})" if kind else ""))
        else:
            rows.append(f"  {line.strip().replace('``', '`')}")
    return rows, index


def _literal(text: str) -> str:
    return text.replace("``", "`").replace("{", "\\{").replace("}", "\\}")


# Instructions


def instructions_page() -> str:
    """All instructions, engine by engine, from what their classes declare."""
    import sparqle_tvm.target.isa as isa

    parts = ["# Instruction set", markdown_of(inspect.getdoc(isa) or "")]
    control = [cls for cls in INSTRUCTIONS.values() if not cls.EXTENTS and cls.OPCODE < 4]
    parts += ["## Overview", _overview()]
    parts.append("## Control")
    parts += [_instruction(cls) for cls in control]
    for engine in Engine:
        members = [c for c in INSTRUCTIONS.values() if c not in control and engine == c.ENGINE]
        if members:
            parts.append(f"## {engine.name}")
            parts += [_instruction(cls) for cls in members]
    return "\n\n".join(parts) + "\n"


def _overview() -> str:
    rows = ["| opcode | mnemonic | engine | in programs of |", "|---:|---|---|---|"]
    for opcode, cls in INSTRUCTIONS.items():
        anchor = cls.MNEMONIC.lower().replace(".", "")
        engine = "" if opcode < 4 or cls.MNEMONIC == "IF" else cls.ENGINE.name
        rows.append(
            f"| {opcode} | [{cls.MNEMONIC}](#{anchor}) | {engine} | {cls.SERVES or 'all'} |"
        )
    return "\n".join(rows)


def _instruction(cls: Any) -> str:
    text = markdown_of(inspect.getdoc(cls) or "")
    described = {}
    for base in reversed(cls.__mro__):
        described.update(_attributes_of(base))
    operands = [
        f"| `{field.name}` | {field.type} | {described.get(field.name, '')} |"
        for field in dataclasses.fields(cls)
    ]
    text = text.split("**Attributes**")[0].strip()
    table = (
        ["| operand | type | meaning |", "|---|---|---|", *operands]
        if operands
        else ["No operands."]
    )
    return f"### {cls.MNEMONIC}\n\n{text}\n\n" + "\n".join(table)


def _attributes_of(cls: type) -> dict[str, str]:
    """Operand -> description, from the section Attributes of a docstring."""
    docstring = inspect.cleandoc(cls.__doc__ or "")
    _, _, attributes = docstring.partition("Attributes\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in attributes.splitlines():
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
        else:
            for name in names:
                said = line.strip().replace("``", "`").replace("|", "\\|")
                found[name] = f"{found.get(name, '')} {said}".strip()
    return found


# Results


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of what each command of `RESULTS` writes."""
    found, components = msgspec.json.schema_components(
        [cls for cls, _ in RESULTS.values()], ref_template="#/$defs/{name}"
    )
    whole = {}
    for (command, (cls, kind)), schema in zip(RESULTS.items(), found, strict=True):
        says: dict[str, Any] = {"kind": {"const": kind}}
        if issubclass(cls, Stored):
            says["version"] = {"const": cls.FORM.version}
        whole[command] = {
            "$schema": SCHEMA,
            "title": command,
            "properties": says,
            "required": list(says),
            **schema,
            "$defs": components,
        }
    return whole


def results_page(folder: Path) -> str:
    """What `--json` writes: every field of every result, and schemas for other programs."""
    parts = [
        "# JSON of commands",
        "`--json FILE` writes the whole result; `sparqle report` and the classes named here read "
        "it back, and check every field. `kind` says what it is. Shares are from 0 to 1, sizes in "
        "bytes, times in seconds or cycles, as names say. `sparqle estimate --phase both` writes a "
        "list of estimates. Of schemes `sparqle` is what pages and tables call split.",
        "| command | kind | result | JSON schema |\n|---|---|---|---|",
    ]
    components: dict[str, Any] = {}
    for (command, (cls, kind)), schema in zip(RESULTS.items(), schemas().values(), strict=True):
        name = f"{cls.__name__}.schema.json"
        _write(folder / name, json.dumps(schema, indent=1))
        linked = f"[{cls.__name__}](#{cls.__name__.lower()})"
        parts[-1] += f"\n| `{command}` | `{kind}` | {linked} | {{download}}`{name}` |"
        components = schema["$defs"]
    for name in sorted(components):
        parts.append(_schema_table(name, components[name]))
    return "\n\n".join(parts) + "\n"


def _class_of(name: str) -> type | None:
    """The dataclass of ours that a schema names."""
    for module in sorted(name for name in sys.modules if name.startswith("sparqle_tvm")):
        found = vars(sys.modules[module]).get(name)
        if dataclasses.is_dataclass(found) and isinstance(found, type):
            return found
    return None


def _schema_table(name: str, schema: dict[str, Any]) -> str:
    cls = _class_of(name)
    text = "" if cls is None else (inspect.getdoc(cls) or "").splitlines()[0]
    described: dict[str, str] = {}
    for base in reversed(cls.__mro__ if cls else ()):
        described.update(_attributes_of(base))
    rows = [
        f"## {name}",
        "",
        text.replace("``", "`"),
        "",
        "| field | JSON | meaning |",
        "|---|---|---|",
    ]
    required = set(schema.get("required", ()))
    for field, kind in schema.get("properties", {}).items():
        said = _kind(kind) + ("" if field in required else "; may be missing")
        rows.append(f"| `{field}` | {said} | {described.get(field, '')} |")
    return "\n".join(rows)


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value!r}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    kind = schema.get("type", "any")
    if kind == "array":
        inner = schema.get("items") or {}
        return f"array of {_kind(inner)}" if inner else "array"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"object of {_kind(inner)}" if isinstance(inner, dict) and inner else "object"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}"
    if low is not None or "exclusiveMinimum" in schema:
        return f"{kind}, " + (f"from {low:g}" if low is not None else "above 0")
    return str(kind)
