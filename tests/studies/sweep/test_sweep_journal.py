"""What a sweep keeps: whole records, and refusals of damaged or foreign files."""

import sqlite3

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.studies.sweep.journal import Journal, remove_journal


def filled(path, count: int = 200):
    journal = Journal(path, "a")
    journal.add({i: {"seconds": i / 3, "text": "x" * 50} for i in range(count)})
    journal.close()
    return path


def test_records_come_back(tmp_path):
    path = filled(tmp_path / "j", 3)
    journal = Journal(path, "a")
    assert journal.read() == {i: {"seconds": i / 3, "text": "x" * 50} for i in range(3)}
    journal.add({1: {"seconds": 0.5}})
    assert journal.read()[1] == {"seconds": 0.5}
    journal.close()


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path):
    journal = Journal(tmp_path / "j", "a")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.add({0: {"seconds": 1.0}, 1: {"seconds": float("nan")}})
    assert journal.read() == {}
    journal.close()


def test_another_sweep_is_refused(tmp_path):
    path = filled(tmp_path / "j", 1)
    with pytest.raises(InvalidArgumentError, match=r"belongs to another sweep.*--restart"):
        Journal(path, "b")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = filled(tmp_path / "j")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InvalidArgumentError, match=r"is damaged .*--restart"):
        Journal(path, "a")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "j"
    path.write_text("points that somebody wrote down\n" * 100)
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        Journal(path, "a")


def test_a_record_that_is_no_json_is_refused(tmp_path):
    path = filled(tmp_path / "j", 2)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE done SET row = '{' WHERE number = 1")
    database.close()
    journal = Journal(path, "a")
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        journal.read()
    journal.close()


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(InvalidArgumentError, match="cannot be"):
        Journal(tmp_path / "none" / "j", "a")


def test_removing_leaves_nothing(tmp_path):
    remove_journal(filled(tmp_path / "j", 1))
    remove_journal(tmp_path / "j")
    assert list(tmp_path.iterdir()) == []
