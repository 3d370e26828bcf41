"""The commands of ``sparqle``, one module each.

A module has ``add(commands)``, which adds its parser with the function that runs it, and returns
it, or a list of those below it. What is heavy is imported by that function, after the arguments are
read.
"""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import (
    cache,
    calibrate,
    disasm,
    estimate,
    generate,
    pareto,
    report,
    run,
    sweep,
    target,
    tune,
)
from sparqle_tvm.commands._shared import add_output_arguments, check_outputs

COMMANDS = (run, generate, calibrate, pareto, target, estimate, sweep, report, tune, disasm, cache)
"""All of them, in the order that ``sparqle --help`` shows."""


def add_all(commands: Any) -> None:
    """Add the parser of every command, with the arguments that all have."""
    for command in COMMANDS:
        parsers = command.add(commands)
        for parser in parsers if isinstance(parsers, list) else [parsers]:
            add_output_arguments(parser)


def execute(arguments: argparse.Namespace) -> None:
    """Run the command that was given; first refuse outputs that cannot be written."""
    check_outputs(arguments)
    arguments.command(arguments)
