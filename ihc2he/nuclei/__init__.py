"""Nuclei as arrays and tables: pure functions on instance maps and points."""
