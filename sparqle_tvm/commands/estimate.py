"""``sparqle estimate``: what split precision gives for a published model."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from sparqle_tvm.commands import _shared as shared

MODEL_NAMES = "smollm2-135m, bitnet-3b, llama2-7b, llama2-13b, llama2-70b, llama3-8b"


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    estimate = shared.add_command(
        commands,
        "estimate",
        _estimate,
        help="estimate seconds and joules of a published model, and what limits it",
        description="Count a pass of a published model by formula: split precision beside two "
        "dense passes (dense), wider multipliers on the same area (native) and activations of one "
        "digit (a4 if it has 4 bits, not exact). Prints time, DRAM traffic, energy with its band, "
        "and what limits them. With --sensitivity, also what a change of each field of the "
        "accelerator would do.",
    )
    estimate.add_argument("--model", default="llama2-7b", help=f"one of {MODEL_NAMES}")
    estimate.add_argument("--phase", default="prefill", help="prefill or decode")
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
    estimate.add_argument(
        "--kv",
        default="int8",
        metavar="STORAGE",
        help="how the cache stores keys and values of attention on the array: int8, planes (exact, "
        "what is smaller), planes:F or planes:F,G with factors on their scales, int6, int5, int4",
    )
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
    from sparqle_tvm.report.estimate import estimate_document
    from sparqle_tvm.studies.estimate import choose_ahead, estimate
    from sparqle_tvm.target.accelerator import Accelerator

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
    on = partial(estimate, arguments.model, arguments.phase, **question)
    result = on(target=accelerator)
    changes = None
    if arguments.sensitivity:
        from tqdm import tqdm

        from sparqle_tvm.studies.sensitivity import COMPARED, count_changes, sensitivity

        count = count_changes(accelerator)
        with tqdm(total=count, unit="change", desc="sensitivity", leave=False) as bar:
            asked = {"model": arguments.model, "phase": arguments.phase, **question}
            changes = sensitivity(
                accelerator,
                lambda other: on(target=other, schemes=COMPARED, same_tiles=False),
                ahead=lambda all_: choose_ahead(((one, asked) for one in all_), schemes=COMPARED),
                progress=bar.update,
            )

    def data() -> dict[str, Any]:
        more = {} if changes is None else {"sensitivity": changes.to_json()}
        return {**result.to_json(), **more}

    shared.deliver(arguments, lambda: estimate_document(result, changes), data)
