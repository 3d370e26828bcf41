"""Dense ops that read one encoding run as one: their output channels lie side by side.

Queries, keys and values of a block, or gate and up, load their activations once. What belongs to a
channel (weights, scales, minima, offset) is that of its op, so results stay what they are; they are
columns of one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparqle_tvm.target.op import DenseOp

SEPARATOR = "+"
"""Between the labels of ops in that of their joint op."""


@dataclass(frozen=True)
class JointOp:
    """Ops that run as one.

    Attributes
    ----------
    op : DenseOp
        All their channels, in the order of the parts.
    parts : tuple of DenseOp
        The ops; one alone is its own joint op.
    """

    op: DenseOp
    parts: tuple[DenseOp, ...]


def join(ops: Sequence[DenseOp], *, joint: bool = True) -> tuple[JointOp, ...]:
    """Put the ops that read one encoding side by side.

    Ops are joined that differ in nothing but channels and label. Those that encode their outputs
    stay alone: their outputs are stored in chunks of their own. So do all if not `joint`.

    Returns
    -------
    tuple of JointOp
        In the order of their first parts.
    """
    groups: dict[DenseOp | int, list[DenseOp]] = {}
    for i, op in enumerate(ops):
        alone = op.output == "encoded" or not joint
        groups.setdefault(i if alone else replace(op, n=1), []).append(op)
    return tuple(
        JointOp(
            replace(parts[0], n=sum(op.n for op in parts), label=joint_label(parts)),
            tuple(parts),
        )
        for parts in groups.values()
    )


def joined(ops: Sequence[DenseOp], *, joint: bool = True) -> tuple[DenseOp, ...]:
    """What runs for ops that read one encoding: the joint ops alone."""
    return tuple(each.op for each in join(ops, joint=joint))


def joint_label(ops: Sequence[DenseOp]) -> str:
    """The labels of all ops, of those that have one."""
    return SEPARATOR.join(filter(None, (op.label for op in ops)))


def part_labels(label: str) -> list[str]:
    """The labels of the ops that a joint op stands for."""
    return label.split(SEPARATOR)


def portions(amount: int, channels: Sequence[int]) -> list[int]:
    """Divide a whole number by channels; the portions add up to it."""
    total, seen, found = sum(channels), 0, []
    for count in channels:
        before = amount * seen // total
        seen += count
        found.append(amount * seen // total - before)
    return found
