"""Files that are whole or not there, and data of files in checked types."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest

from sparqle_tvm.errors import InvalidArgumentError, ResultFileError
from sparqle_tvm.files import (
    SCRATCH_PREFIX,
    all_or_nothing,
    plain,
    read_bytes,
    read_json,
    read_toml,
    replacing,
    typed,
    write_json,
    write_text,
)


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


def test_a_file_that_is_replaced_keeps_permissions_and_owner(tmp_path):
    file = tmp_path / "out.json"
    file.write_text("before")
    file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(file, 1234, 4321)
    before = file.stat()
    write_json(file, {"a": 1})
    after = file.stat()
    assert json.loads(file.read_text()) == {"a": 1}
    for name in ("st_mode", "st_uid", "st_gid"):
        assert getattr(after, name) == getattr(before, name)
    assert after.st_ino != before.st_ino


def test_links_are_followed_and_stay_links(tmp_path):
    (tmp_path / "there").mkdir()
    file, link, dangling = tmp_path / "there" / "out.json", tmp_path / "link", tmp_path / "new"
    file.write_text("before")
    link.symlink_to(file)
    dangling.symlink_to(tmp_path / "there" / "new.json")
    for path in (link, dangling):
        write_json(path, {"a": 1})
        assert path.is_symlink()
        assert json.loads(path.read_text()) == {"a": 1}
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new.json", "out.json"]


def test_devices_and_pipes_are_written_to(tmp_path):
    null, pipe = Path("/dev/null"), tmp_path / "pipe"
    before = null.stat()
    write_json(null, {"a": 1})
    assert (null.stat().st_ino, null.stat().st_rdev) == (before.st_ino, before.st_rdev)
    with pytest.raises(InvalidArgumentError, match=r"/dev/full cannot be written: No space left"):
        write_json("/dev/full", {"a": 1})
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_json(pipe, {"a": 1})
        assert json.loads(read.result()) == {"a": 1}
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_standard_output_by_its_name_is_where_it_was(tmp_path, kind):
    code = "from sparqle_tvm.files import write_json\nprint('before', flush=True)\n"
    code += "write_json('/dev/stdout', {'a': 1}, indent=None)\nprint('after')\n"
    command = [sys.executable, "-c", code]
    if kind == "pipe":
        found = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
    else:
        out = tmp_path / "out"
        with out.open("w") as file:
            subprocess.run(command, stdout=file, check=True)
        found = out.read_text()
    assert found == 'before\n{"a":1}\nafter\n'


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "out.json"
    file.write_text("before")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != file)
    with pytest.raises(InvalidArgumentError, match=r"out\.json cannot be written: no permission"):
        write_json(file, {})
    assert file.read_text() == "before"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InvalidArgumentError, match=r"loop cannot be written"):
        write_json(loop, {})


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path):
    abandoned = tmp_path / f"{SCRATCH_PREFIX}abc"
    abandoned.mkdir()
    (abandoned / "half").write_text("half")
    with replacing(tmp_path / "a") as first:
        with replacing(tmp_path / "b") as second:
            first.write_text("a")
            second.write_text("b")
        assert first.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_all_files_or_none(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(ZeroDivisionError), all_or_nothing():
        write_text(tmp_path / "a", "after")
        write_text(tmp_path / "b", "after")
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"
    with all_or_nothing():
        write_text(tmp_path / "a", "after")
        assert (tmp_path / "a").read_text() == "before"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["after"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "not JSON"),
        ('{"a": 1' + "0" * 30 + "}", "is too large a number"),
        ('{"a": 1' + "0" * 10_000 + "}", "is too large a number"),
        ('{"a": 1e400}', "1e400 is no finite number"),
        ('{"a": NaN}', "no finite number"),
        ("\xff\xfe", "not JSON"),
    ],
)
def test_json_that_is_refused(tmp_path, text, reason):
    (tmp_path / "in.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultFileError, match=reason) as caught:
        read_json(tmp_path / "in.json", ResultFileError, "a result")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a = " + "[" * 10_000, "a = 1" + "0" * 30, "a = nan", "= 1"])
def test_toml_that_is_refused(tmp_path, text):
    (tmp_path / "in.toml").write_text(text)
    with pytest.raises(ResultFileError, match=r"in\.toml is no TOML"):
        read_toml(tmp_path / "in.toml", ResultFileError)


def test_no_more_than_the_limit_is_read():
    with pytest.raises(ResultFileError, match="/dev/zero is larger than 1 MiB"):
        read_bytes("/dev/zero", ResultFileError, 1 << 20)
    with pytest.raises(ResultFileError, match="cannot be read: embedded null"):
        read_bytes("a\0b", ResultFileError)


def test_data_that_is_nested_too_deeply_is_refused():
    data: object = 0
    for _ in range(5000):
        data = [data]
    with pytest.raises(ResultFileError, match="nested too deeply"):
        typed(data, object, "out.json", ResultFileError)
