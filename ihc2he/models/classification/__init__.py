"""Classifiers of whole tiles, such as HER2 levels."""
