"""Nuclei from learned centres and foreground."""
