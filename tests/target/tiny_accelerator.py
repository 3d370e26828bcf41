"""A tiny accelerator whose cycles one can count by hand."""

from __future__ import annotations

from sparqle_tvm.target.accelerator import Accelerator

TINY = Accelerator(
    name="tiny",
    rows=2,
    cols=2,
    lanes=4,
    clock_ghz=1.0,
    dram_bytes_per_cycle=4,
    dma_descriptor_cycles=10,
    activation_buffer_bytes=1024,
    weight_buffer_bytes=1024,
    accumulator_buffer_bytes=1024,
    drain_elements_per_cycle=2,
    vector_lanes=4,
    vector_macs_per_cycle=8,
)
"""2 x 2 PEs of 4 lanes; 4 bytes per cycle, 10 cycles per descriptor."""
