"""A light U-Net for the maps of any decoder that it has a loss for."""
