"""Images that are larger than a network's window: positions of windows, blending of maps, and duplicate nuclei."""
