"""Compiled modules at run time: calls, launches of accelerator programs, profiles."""
