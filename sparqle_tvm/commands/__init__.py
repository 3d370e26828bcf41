"""The commands of ``sparqle``, one module each.

A module has ``add(commands)``, which adds its parser and sets the default ``command`` to the
function that runs it. What is heavy is imported by that function, after the arguments are read.
"""

from __future__ import annotations

from typing import Any

from sparqle_tvm.commands import calibrate, disasm, estimate, pareto, report, run, sweep, tune

COMMANDS = (run, calibrate, pareto, estimate, report, sweep, tune, disasm)
"""All of them, in the order that ``sparqle --help`` shows."""


def add_all(commands: Any) -> None:
    """Add the parser of every command."""
    for command in COMMANDS:
        command.add(commands)
