"""Metrics of translated images (pairs and distributions), stains, and nuclei."""
