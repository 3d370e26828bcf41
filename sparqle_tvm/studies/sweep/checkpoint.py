"""What a sweep has done so far, so that it goes on after a kill: an SQLite file beside the result.

SQLite's transactions make every record whole or absent, whenever the process is killed.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import parse_json, typed

SUFFIX = ".progress"
TABLES = (
    "CREATE TABLE sweep (digest TEXT)",
    "CREATE TABLE done (number INTEGER PRIMARY KEY, row TEXT)",
)
UNNAMED = "sweep"
"""What the file of a sweep without a table is named for."""
REMEDY = "remove it, or begin anew with --restart"


def kept_beside(out: str | os.PathLike[str]) -> Path:
    """The file of a sweep, beside its table; in this folder if there is none."""
    return Path(f"{out or UNNAMED}{SUFFIX}")


class Checkpoint:
    """Finished points of the sweep with a `Sweep.digest`, in an SQLite file (made if missing).

    Raises
    ------
    InvalidArgumentError
        If the file is damaged, or of another sweep.
    """

    def __init__(self, path: str | os.PathLike[str], digest: str) -> None:
        self.path = Path(path)
        try:
            self._database = sqlite3.connect(self.path)
        except sqlite3.Error as error:
            raise InvalidArgumentError(f"{path} cannot be opened: {error}") from error
        try:
            self._open(digest)
        except BaseException:
            self._database.close()
            raise

    def _open(self, digest: str) -> None:
        try:
            (state,) = self._database.execute("PRAGMA integrity_check(1)").fetchone()
            if state != "ok":
                raise sqlite3.DatabaseError(state.splitlines()[-1])
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                # A view or a trigger would run what somebody else wrote.
                schema = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
                found = [sql for (sql,) in self._database.execute(schema)]
                if not found:
                    for table in TABLES:
                        self._database.execute(table)
                elif found != list(TABLES):
                    raise sqlite3.DatabaseError("it has other tables")
                kept = self._database.execute("SELECT digest FROM sweep").fetchone()
                if self._nothing_done():
                    # Nothing was done yet, of whichever sweep.
                    self._database.execute("DELETE FROM sweep")
                    self._database.execute("INSERT INTO sweep VALUES (?)", (digest,))
                    kept = (digest,)
        except sqlite3.OperationalError as error:
            raise self._unwritable(error) from error
        except sqlite3.Error as error:
            raise self.damaged(error) from error
        if kept is None or kept[0] != digest:
            raise InvalidArgumentError(
                f"{self.path} belongs to another sweep, or to another version; "
                "choose another output file, or begin anew with --restart"
            )

    def read(self) -> dict[int, dict[str, Any]]:
        """Results by the number of their point.

        Raises
        ------
        InvalidArgumentError
            If a record is damaged.
        """
        try:
            rows = self._database.execute("SELECT number, row FROM done").fetchall()
            return {number: self._record(number, row) for number, row in rows}
        except (sqlite3.Error, UnicodeError) as error:
            raise self.damaged(error) from error

    def is_empty(self) -> bool:
        """Whether nothing is done yet; False if the file cannot tell."""
        try:
            return self._nothing_done()
        except sqlite3.Error:
            return False

    def _nothing_done(self) -> bool:
        return self._database.execute("SELECT 1 FROM done LIMIT 1").fetchone() is None

    def _record(self, number: object, row: object) -> dict[str, Any]:
        if not isinstance(number, int) or not isinstance(row, str):
            raise self.damaged("a record is no text")
        where = f"{self.path}, record {number}"
        return typed(
            parse_json(row, where, InvalidArgumentError, REMEDY),
            dict[str, Any],
            f"{where} is damaged, {REMEDY}",
            InvalidArgumentError,
        )

    def damaged(self, reason: object) -> InvalidArgumentError:
        """The error that says so, and why."""
        return InvalidArgumentError(f"{self.path} is damaged ({reason}); {REMEDY}")

    def _unwritable(self, error: Exception) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self.path} cannot be written: {error}")

    def add(self, results: Mapping[int, Mapping[str, Any]]) -> None:
        """Keep results; all of them or none.

        Raises
        ------
        InvalidArgumentError
            If they cannot be written.
        """
        rows = [(number, json.dumps(row, allow_nan=False)) for number, row in results.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO done VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def remove_checkpoint(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint and what SQLite keeps beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
