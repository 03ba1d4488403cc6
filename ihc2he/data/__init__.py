"""Datasets: from files on disk, through an HDF5 tile store, to batches of tensors."""
