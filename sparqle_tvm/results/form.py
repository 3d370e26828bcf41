"""The JSON form of results that are kept in files: of which kind and version, and read back."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Self

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import plain, typed_version


class Form(NamedTuple):
    """How the JSON of a result says what it is.

    Attributes
    ----------
    kind, version : str, int
        What ``kind`` and ``version`` say in it.
    command : str
        What writes it.
    name : str
        What errors call it that know no file.
    besides : tuple of str
        Keys that may stand in it and are not read: what follows from the rest.
    """

    kind: str
    version: int
    command: str
    name: str = "the result"
    besides: tuple[str, ...] = ()


class Stored:
    """Base of the dataclasses that have such a `FORM`."""

    FORM: ClassVar[Form]

    def to_json(self) -> dict[str, Any]:
        """JSON form: numbers, strings, lists and dictionaries only."""
        form = self.FORM
        return {"kind": form.kind, "version": form.version, **self._derived(), **plain(self)}

    def _derived(self) -> dict[str, Any]:
        """What the JSON says beside the fields."""
        return {}

    @classmethod
    def from_json(cls, data: Any, where: object = None) -> Self:
        """Read what `to_json` gave, maybe out of a file; errors say `where`.

        Raises
        ------
        ResultFileError
            If it is of another version, or not of this form; names the place.
        """
        form = cls.FORM
        return typed_version(
            data,
            cls,
            form.version,
            form.name if where is None else where,
            ResultFileError,
            f"make it again with {form.command} --json FILE of this release",
            besides=("kind", *form.besides),
        )
