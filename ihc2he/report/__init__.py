"""The pages and pictures that a run leaves for people."""
