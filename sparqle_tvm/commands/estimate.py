"""``sparqle estimate``: what split precision gives for a published model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.progress import progress_bar

if TYPE_CHECKING:
    from sparqle_tvm.results.estimate import Estimate
    from sparqle_tvm.target.accelerator import Accelerator


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    estimate = shared.add_command(
        commands,
        "estimate",
        _estimate,
        epilog=shared.examples(
            "estimate --model qwen2.5-7b --phase both --html qwen.html",
            "estimate --model config.json --target mine.toml --sensitivity",
            "estimate --phase decode --batch 64 --msb-sparsity 0.8",
        ),
        help="estimate seconds and joules of a published model, and what limits it",
        description="Count a pass of a published model by formula: split precision beside two "
        "dense passes (dense), wider multipliers on the same area (native) and activations of one "
        "digit (a4 if it has 4 bits, not exact). Prints time, DRAM traffic, energy with its band, "
        "and what limits them. With --sensitivity, also what a change of each field of the "
        "accelerator would do.",
    )
    shared.add_shape_argument(estimate, "llama2-7b")
    estimate.add_argument("--phase", default="prefill", help="prefill, decode or both")
    estimate.add_argument(
        "--seq", type=int, default=2048, help="tokens of the pass, or in the cache before it"
    )
    estimate.add_argument("--batch", type=int, default=1, help="sequences")
    estimate.add_argument(
        "--msb-sparsity",
        default="measured",
        metavar="measured|S|FILE",
        help="measured on SmolLM2-135M, with digits as wide as the target's; a share of zero MSB "
        "digits, 0 to 1; or a JSON file: such a share by layer type (qkv, o, gate_up, down, "
        "output; digit_bits, 4 if not said), or what sparqle run --json wrote",
    )
    estimate.add_argument(
        "--target", default="sparqle/edge", metavar="NAME|FILE.toml", help="accelerator"
    )
    shared.add_table_arguments(estimate)
    estimate.add_argument(
        "--kv-bits", type=int, default=8, help="bits of a cached key or value: 4, 8 or 16"
    )
    shared.add_kv_argument(estimate)
    estimate.add_argument(
        "--attention",
        choices=("array", "vector"),
        help="who computes it: the array, in 8 bits (the default where it can), or the vector "
        "unit, in floats",
    )
    estimate.add_argument(
        "--balance",
        default="array",
        help="what rows are sorted for under split precision: cycles of the array, time, or none",
    )
    estimate.add_argument(
        "--static-watts",
        type=float,
        help="leakage and idle power; if not given, a share of the array's power (with its band)",
    )
    estimate.add_argument(
        "--sensitivity",
        action="store_true",
        help="double and halve every numeric field of the accelerator, one at a time: how time "
        "and energy of the dense and the split form change, and what is saved then",
    )
    shared.add_document_arguments(estimate)
    return estimate


def _estimate(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.errors import require_known
    from sparqle_tvm.report.estimate import estimate_document
    from sparqle_tvm.results.estimate import KIND_OF_SEVERAL
    from sparqle_tvm.results.passes import PHASES
    from sparqle_tvm.studies.estimate import estimate, estimate_around
    from sparqle_tvm.target.accelerator import Accelerator

    if arguments.phase != "both":
        require_known("phase", arguments.phase, (*PHASES, "both"))
    accelerator = Accelerator.from_target(arguments.target)
    question = {
        "seq": arguments.seq,
        "batch": arguments.batch,
        "msb_sparsity": arguments.msb_sparsity,
        "table": shared.energy_table_of(arguments, accelerator),
        "kv_bits": arguments.kv_bits,
        "kv": arguments.kv,
        "attention": arguments.attention,
        "balance": arguments.balance,
        "static_watts": arguments.static_watts,
    }
    phases = PHASES if arguments.phase == "both" else (arguments.phase,)
    asked = [partial(estimate, arguments.model, phase, **question) for phase in phases]
    found = [
        estimate_around(arguments.model, phase, target=accelerator, **question) for phase in phases
    ]
    changes = []
    if arguments.sensitivity:
        from sparqle_tvm.studies.sensitivity import count_changes, sensitivity

        count = len(asked) * count_changes(accelerator)
        with progress_bar(total=count, unit="change", desc="sensitivity") as bar:
            for phase, on in zip(phases, asked, strict=True):
                given = {"model": arguments.model, "phase": phase, **question}
                changes.append(
                    sensitivity(
                        accelerator,
                        partial(_compared, on),
                        ahead=partial(_choose_ahead, given),
                        progress=bar.update,
                    )
                )

    def data() -> dict[str, Any]:
        more = [{"sensitivity": one.to_json()} for one in changes] or [{}] * len(found)
        several = [{**one.to_json(), **new} for one, new in zip(found, more, strict=True)]
        if arguments.phase != "both":
            return several[0]
        return {"kind": KIND_OF_SEVERAL, "estimates": several}

    shared.deliver(arguments, lambda: estimate_document(found, changes), data)


def _compared(on: Callable[..., Estimate], accelerator: Accelerator) -> Estimate:
    """An estimate on another accelerator, of the schemes that a sensitivity compares."""
    from sparqle_tvm.studies.estimate import COMPARED

    return on(target=accelerator, schemes=COMPARED, same_tiles=False)


def _choose_ahead(given: dict[str, Any], accelerators: Sequence[Accelerator]) -> None:
    """Choose the schedules of such estimates on many accelerators together."""
    from sparqle_tvm.studies.estimate import COMPARED, choose_ahead

    choose_ahead(((machine, given) for machine in accelerators), schemes=COMPARED)
