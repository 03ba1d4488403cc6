"""Decoders: from nuclei to maps that a network can learn, and back from maps to nuclei."""
