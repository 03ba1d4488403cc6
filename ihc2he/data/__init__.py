"""Datasets: disk layouts in, batches of tensors out, by way of an HDF5 tile store."""
