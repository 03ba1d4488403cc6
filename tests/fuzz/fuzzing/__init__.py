"""Malformed inputs, made from good ones by mutation, and what becomes of each: `python tests/fuzz/run.py`."""
