"""Exact kernels for a plain ``llvm`` target, and the legalizations that call them.

``legalize`` holds the entry points; this module imports nothing, because ``import tvm`` is slow.
"""
