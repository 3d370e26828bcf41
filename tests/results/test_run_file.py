"""A run's JSON file read back: the same figures, and one typed error for what is no such file."""

import json

import pytest
from run_result_helper import EDGE, SHAPE, run_result

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.results.run_file import load_run, parse_run


def saved(tmp_path, data):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    return path


def test_a_file_holds_what_the_run_had(tmp_path):
    result = run_result()
    run = load_run(saved(tmp_path, result.to_json()))
    assert (run.accelerator, run.transformer, run.model) == (EDGE, SHAPE, "tiny")
    assert [(p.name, p.tokens, p.past) for p in run.phases] == [
        ("prefill", 24, 0),
        ("decode", 1, 23),
    ]
    for phase, counted in ((run.prefill, result.prefill), (run.decode, result.decode)):
        for scheme, cost in (("dense", counted.dense), ("sparqle", counted.sparqle)):
            mine = [layer.costs[scheme].total_cycles for layer in phase.layers]
            assert mine == [op.total_cycles for op in cost.ops]
            assert [layer.label for layer in phase.layers] == [op.label for op in cost.ops]


def damaged(change):
    data = json.loads(json.dumps(run_result().to_json()))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("version"), "has version None"),
        (lambda d: d.update(version=1), "has version 1, not"),
        (lambda d: d.pop("decode"), "not a whole file.*'decode'"),
        (lambda d: d["prefill"]["layers"][0].pop("macs"), "not a whole file.*'macs'"),
        (lambda d: d["prefill"]["layers"][0].update(dense=3), "not a whole file"),
        (lambda d: d["energy"].pop("decode"), "not a whole file.*'decode'"),
        (lambda d: d["accelerator"].update(rows=-1), "rows = -1 must be positive"),
        (lambda d: d["accelerator"].update(wheels=4), "not a whole file.*wheels"),
        (lambda d: d["transformer"].update(layers=0), "layers = 0 must be positive"),
    ],
)
def test_what_is_no_whole_file(tmp_path, change, message):
    with pytest.raises(ResultFileError, match=rf"run\.json.*{message}"):
        load_run(saved(tmp_path, damaged(change)))


@pytest.mark.parametrize("data", [[], 3, None, "text"])
def test_json_of_another_kind(data):
    with pytest.raises(ResultFileError, match="the result has version None"):
        parse_run(data)


def test_no_json_and_no_file(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(ResultFileError, match=r"run\.json cannot be read: No such file"):
        load_run(path)
    path.write_text('{"version": ')
    with pytest.raises(ResultFileError, match=r"run\.json is not JSON"):
        load_run(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultFileError, match=r"run\.json is not JSON"):
        load_run(path)
