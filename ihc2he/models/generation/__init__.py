"""Synthetic tiles by level: generators, their training, and how good what they make is."""
