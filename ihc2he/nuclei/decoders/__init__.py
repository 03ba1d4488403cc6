"""Decoders: how nuclei are written as maps that a network can learn, and read off such maps again."""
