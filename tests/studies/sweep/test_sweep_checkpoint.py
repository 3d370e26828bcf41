"""What a sweep keeps: whole records, and refusals of damaged or foreign files."""

import sqlite3

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.studies.sweep.checkpoint import Checkpoint, remove_checkpoint


def filled(path, count: int = 200):
    checkpoint = Checkpoint(path, "a")
    checkpoint.add({i: {"seconds": i / 3, "text": "x" * 50} for i in range(count)})
    checkpoint.close()
    return path


def test_records_come_back(tmp_path):
    path = filled(tmp_path / "j", 3)
    checkpoint = Checkpoint(path, "a")
    assert checkpoint.read() == {i: {"seconds": i / 3, "text": "x" * 50} for i in range(3)}
    checkpoint.add({1: {"seconds": 0.5}})
    assert checkpoint.read()[1] == {"seconds": 0.5}
    checkpoint.close()


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path):
    checkpoint = Checkpoint(tmp_path / "j", "a")
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.add({0: {"seconds": 1.0}, 1: {"seconds": float("nan")}})
    assert checkpoint.read() == {}
    checkpoint.close()


def test_another_sweep_is_refused(tmp_path):
    path = filled(tmp_path / "j", 1)
    with pytest.raises(InvalidArgumentError, match=r"belongs to another sweep.*--restart"):
        Checkpoint(path, "b")


def test_a_sweep_of_which_nothing_is_done_makes_room(tmp_path):
    path = tmp_path / "j"
    Checkpoint(path, "a").close()
    checkpoint = Checkpoint(path, "b")
    assert checkpoint.is_empty()
    checkpoint.add({0: {"seconds": 1.0}})
    assert not checkpoint.is_empty()
    checkpoint.close()
    with pytest.raises(InvalidArgumentError, match="belongs to another sweep"):
        Checkpoint(path, "a")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = filled(tmp_path / "j")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InvalidArgumentError, match=r"is damaged .*--restart"):
        Checkpoint(path, "a")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "j"
    path.write_text("points that somebody wrote down\n" * 100)
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        Checkpoint(path, "a")


def test_a_record_that_is_no_json_is_refused(tmp_path):
    path = filled(tmp_path / "j", 2)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE done SET row = '{' WHERE number = 1")
    database.close()
    checkpoint = Checkpoint(path, "a")
    with pytest.raises(InvalidArgumentError, match=r"record 1 is not JSON .*--restart"):
        checkpoint.read()
    checkpoint.close()


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(InvalidArgumentError, match="cannot be"):
        Checkpoint(tmp_path / "none" / "j", "a")


def test_removing_leaves_nothing(tmp_path):
    remove_checkpoint(filled(tmp_path / "j", 1))
    remove_checkpoint(tmp_path / "j")
    assert list(tmp_path.iterdir()) == []
