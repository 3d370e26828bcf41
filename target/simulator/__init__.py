"""Running programs on a model of the accelerator: exact values, cycles, bytes and MACs."""

from sparqle_tvm.target.simulator.counts import Counts, EngineTime, PlaneCounts
from sparqle_tvm.target.simulator.digits import draw_nnz, nnz_from_bitmap
from sparqle_tvm.target.simulator.dram import (
    activation_tensors,
    pack_activations,
    pack_weights,
    plane_tensors,
    tensor_formats,
    weight_tensors,
)
from sparqle_tvm.target.simulator.machine import SimResult, simulate, simulate_timing
from sparqle_tvm.target.simulator.streams import tile_order

__all__ = [
    "Counts",
    "EngineTime",
    "PlaneCounts",
    "SimResult",
    "activation_tensors",
    "draw_nnz",
    "nnz_from_bitmap",
    "pack_activations",
    "pack_weights",
    "plane_tensors",
    "simulate",
    "simulate_timing",
    "tensor_formats",
    "tile_order",
    "weight_tensors",
]
