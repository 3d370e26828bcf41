"""Accelerator programs: built, printed, saved, bound to a number of rows."""

from __future__ import annotations

from sparqle_tvm.target.program.program import Program, ProgramBuilder

__all__ = ["Program", "ProgramBuilder"]
