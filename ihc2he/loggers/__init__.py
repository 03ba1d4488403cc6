"""Loggers for the scalars and pictures of a run, and the W&B dashboard."""
