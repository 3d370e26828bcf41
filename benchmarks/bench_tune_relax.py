"""A model tuned by TVM's ``tune_relax`` and by ``sparqle_tvm.tune``: what each found.

    python benchmarks/bench_tune_relax.py [--model MODEL] [--trials 100] [--seed 0]

The module of SmolLM2-135M (fetched on first use) as ``sparqle tune`` takes it, for `sparqle/edge`,
with the same number of trials and the same seed; cycles of all dense layers, prefill of 512 tokens
and decode, on the simulator.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import tvm
from tvm.s_tir import meta_schedule as ms

import sparqle_tvm
from sparqle_tvm import tuning
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.studies.count import OUTPUT_LABEL
from sparqle_tvm.studies.inputs import functions_of_a_run, model_path

Tried = list[tuple[tuning.TuningTask, object, float]]


def tried(folder: Path) -> Tried:
    """Every trial of a database."""
    return [(e.task, e.decisions, e.value) for e in tuning.TuningDatabase(folder).entries]


def totals(found: Tried, weights: dict[tuning.TuningTask, int]) -> tuple[float, float]:
    """Cycles of all layers with the first schedules, which are the defaults, and the best ones."""
    default, best = dict[tuning.TuningTask, float](), dict[tuning.TuningTask, float]()
    for task, _, value in found:
        default.setdefault(task, value)
        best[task] = min(value, best.get(task, value))
    return tuple(sum(weights[t] * v for t, v in which.items()) for which in (default, best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    mod = functions_of_a_run(from_gguf(model_path(arguments.model), activations="int8"))
    target, single = tvm.target.Target("sparqle/edge"), (OUTPUT_LABEL,)
    tasks = tuning.dense_module(mod, target, single=single)
    weights = {task: task.weight for task in tuning.extract_tasks(mod, target, single=single)}
    with tempfile.TemporaryDirectory() as folder:
        relax, ours = Path(folder) / "relax", Path(folder) / "ours"
        begin = time.process_time()
        ms.relax_integration.tune_relax(
            tasks,
            {},
            target,
            str(relax),
            max_trials_global=arguments.trials,
            **tuning.objects(target, "latency", seed=arguments.seed),
        )
        middle = time.process_time()
        sparqle_tvm.tune(
            mod,
            target,
            trials=arguments.trials,
            work_dir=ours,
            seed=arguments.seed,
            single=single,
            progress=False,
        )
        end = time.process_time()
        found = {"tune_relax": tried(relax), "sparqle tune": tried(ours)}
    for name, seconds in (("tune_relax", middle - begin), ("sparqle tune", end - middle)):
        default, best = totals(found[name], weights)
        print(
            f"{name:12} {len(found[name])} trials, {default:,.0f} -> {best:,.0f} cycles, "
            f"{seconds:.0f} s of processor time"
        )
    same = found["tune_relax"] == found["sparqle tune"]
    print("the same schedules in the same order" if same else "DIFFERENT schedules")


if __name__ == "__main__":
    main()
