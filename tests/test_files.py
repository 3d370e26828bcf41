"""Files that are whole or not there, and data of files in checked types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest

from sparqle_tvm.errors import InvalidArgumentError, ResultFileError
from sparqle_tvm.files import plain, replacing, typed, write_json


@dataclass(frozen=True)
class Inner:
    cycles: int
    share: float = 0.5
    names: tuple[str, ...] = ()
    _kept: dict[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Outer:
    parts: Mapping[str, Inner]
    note: str | None = None


FULL = {
    "parts": {"dense": {"cycles": 3, "share": 0.5, "names": []}},
    "note": None,
}


def read(data: object) -> Outer:
    return typed(data, Outer, "out.json", ResultFileError)


def test_plain_is_what_typed_reads():
    value = Outer(MappingProxyType({"dense": Inner(3)}))
    assert plain(value) == FULL
    assert read(json.loads(json.dumps(plain(value)))) == value


def test_defaults_of_what_was_read_are_written():
    assert plain(read({"parts": {"dense": {"cycles": 3}}})) == FULL


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"parts": {"dense": {"cycles": "3"}}}, "cycles"),
        ({"parts": {"dense": {"cycles": 3, "bytes": 4}}}, "bytes"),
        ({"parts": []}, "parts"),
        ({"note": "no parts"}, "parts"),
        (None, "None|null"),
    ],
)
def test_other_data_is_refused_with_its_place(data, place):
    with pytest.raises(ResultFileError, match=f"(?s)^out.json: .*({place})") as caught:
        read(data)
    assert "\n" not in str(caught.value)


def test_nothing_half_written_is_left(tmp_path):
    file = tmp_path / "out.json"
    file.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(file, {"a": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert file.read_text() == "before"


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"missing.out\.json cannot be written"):
        write_json(tmp_path / "missing" / "out.json", {})
