"""CycleGAN: unpaired translation with two generators (Zhu et al., ICCV 2017)."""
