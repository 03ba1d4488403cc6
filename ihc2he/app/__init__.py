"""A page to try images on and to correct what was found: `python -m ihc2he.app`."""
