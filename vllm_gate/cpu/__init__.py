"""Corrections of the CPU build of vLLM, each with the change that retires it (see patches.py)."""
