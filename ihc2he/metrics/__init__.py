"""Metrics: how near the made images are to the real ones, one by one and as a distribution."""
