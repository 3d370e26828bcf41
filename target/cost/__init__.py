"""Cycles and bytes of models on an accelerator, by closed formulas."""
