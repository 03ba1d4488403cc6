"""CUT and FastCUT: unpaired translation with one generator (Park et al., ECCV 2020)."""
