"""Tuning a model by its sizes: the same tasks as those of the module of such a model."""

from __future__ import annotations

import json
from collections import Counter

from tiny_llama import TinyLlama

from sparqle_tvm.cli import main
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.frontend.shape import model_shape
from sparqle_tvm.studies.count import OUTPUT_LABEL
from sparqle_tvm.studies.inputs import functions_of_a_run
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.tuning.extract import extract_tasks, tasks_of_shape

EDGE = PRESETS["sparqle/edge"]
FIELDS = ("m", "n", "k", "weight_bits", "group_size", "has_min", "scale_bytes", "window", "scheme")


def found(tasks) -> Counter:
    """How often each op is tuned for how many rows."""
    counts: Counter = Counter()
    for task in tasks:
        op = tuple(getattr(task.spec, name) for name in FIELDS)
        counts[(task.rows, op, task.chunks)] += task.weight
    return counts


def test_sizes_give_the_tasks_of_the_module(tmp_path):
    path = TinyLlama(output_kind=None).write(tmp_path / "tiny.gguf")
    module = functions_of_a_run(from_gguf(path, progress=False))
    for scheme in ("sparqle", "dense"):
        options = {"rows": (48, 1), "scheme": scheme}
        of_module = extract_tasks(module, EDGE, **options, single=(OUTPUT_LABEL,))
        of_sizes = tasks_of_shape(model_shape(path), EDGE, **options)
        assert found(of_sizes) == found(of_module)


def test_the_command_tunes_a_model_of_which_only_sizes_are_known(tmp_path, capsys):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 80}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    out = tmp_path / "out.json"
    options = ["--trials", "9", "--tokens", "16", "--engine", "analytical", "--workers", "1"]
    more = ["--database", str(tmp_path / "db"), "--json", str(out)]
    assert main(["tune", "--model", str(tmp_path), *options, *more]) == 0
    printed = capsys.readouterr().out
    data = json.loads(out.read_text())
    assert data["kind"] == "tuning"
    assert sum(task["weight"] for task in data["tasks"] if task["name"].startswith("16 x")) == 8
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == printed
