"""What README and documentation say: links, commands, what these print, code."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_models import mlp, static

from sparqle_tvm import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def shell_lines(page: str) -> list[list[str]]:
    """Commands of ours in blocks of a page, as words."""
    lines = "".join(blocks(page, "sh")).replace("&&", "\n").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "sparqle"]


def parsers_by_command(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command, as ``"target new"``, and its parser."""
    found = {"": parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                for below, each in parsers_by_command(sub).items():
                    found[f"{name} {below}".strip()] = each
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / page).read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        # What is made of code is checked where the site is built.
        if not link.startswith(("http", "generated/")):
            assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_known(page):
    for words in shell_lines(page):
        cli._parser().parse_args(words)
    parsers = parsers_by_command(cli._parser())
    for text in re.findall(r"`sparqle ([^`]+)`", (ROOT / page).read_text()):
        words = text.split()
        named = max((c for c in parsers if words[: len(c.split())] == c.split()), key=len)
        assert named or words[0].startswith("--"), text
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= set(parsers[named]._option_string_actions), text


def test_your_accelerator_shows_what_the_commands_print(tmp_path, monkeypatch, capsys):
    page = "docs/howto-machine.md"
    new, check, estimate, *_ = shell_lines(page)
    quick = [word for word in estimate if word != "--sensitivity"]  # which takes 20 s
    monkeypatch.chdir(tmp_path)
    for words in (new, check, quick):
        assert cli.main(words) == 0
    printed = iter(line.rstrip() for line in capsys.readouterr().out.splitlines())
    shown = "".join(blocks(page, "text")[:2]).partition("The next knob")[0]
    for line in shown.splitlines():
        # In this order, with lines between them left out.
        assert line == "..." or line.rstrip() in printed, line


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "docs/howto-passes.md"])
def test_python_of_documents_runs_in_order(page, tmp_path):
    assert blocks(page, "python")
    static(mlp(), tmp_path).rename(tmp_path / "model.onnx")
    # A file, because TVMScript reads the source of what it decorates.
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
