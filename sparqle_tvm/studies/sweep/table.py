"""The table of a sweep: one row a point, its names first, as CSV or JSON."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.escaping import for_csv
from sparqle_tvm.files import replacing, require_writable, write_json
from sparqle_tvm.studies.sweep.points import Sweep

SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: for each of its points the figures, or ``error``."""

    sweep: Sweep
    results: tuple[Mapping[str, Any], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the points, then of the figures, ``error`` last if there is one."""
        figures = dict.fromkeys(name for result in self.results for name in result)
        last = [name for name in figures if name == "error"]
        names = [*self.sweep.names, *(name for name in figures if name != "error"), *last]
        return tuple(dict.fromkeys(names))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One mapping a point, with all of its names and figures."""
        return [
            {**point, **result}
            for point, result in zip(self.sweep.points, self.results, strict=True)
        ]

    @property
    def failed(self) -> int:
        """Points that ended in an error."""
        return sum("error" in result for result in self.results)

    @staticmethod
    def check_name(path: str | os.PathLike[str]) -> None:
        """Refuse a file name that `write` does not take.

        Raises
        ------
        InvalidArgumentError
            If it does not end in ``.csv`` or ``.json``, or its folder is missing.
        """
        if Path(path).suffix not in SUFFIXES:
            raise InvalidArgumentError(f"{path}: the table of a sweep ends in .csv or .json")
        require_writable(path)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the table; the name's ending says whether as CSV or as JSON.

        Raises
        ------
        InvalidArgumentError
            If it cannot be written, or the ending is another.
        """
        self.check_name(path)
        if Path(path).suffix == ".json":
            write_json(path, self.rows)
            return
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: for_csv(v) for k, v in row.items()} for row in self.rows)
