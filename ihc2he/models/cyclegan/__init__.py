"""CycleGAN for unpaired stain translation."""
