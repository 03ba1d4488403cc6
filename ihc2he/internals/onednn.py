"""oneDNN, which computes networks on CPUs: whether it keeps what it made for each shape."""

from __future__ import annotations

import os

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # of its documentation; read once, when the first network runs


def forget_shapes() -> None:
    """Let this process keep nothing for the shapes that its networks have seen, unless the user says otherwise.

    By default up to 1024 layers are kept. Where each image has another shape they are of no use, and they lie scattered
    between the large blocks of a network, so that freed memory fits no later block and the process grows. Small images
    of one shape take up to four times as long without them. To be called before the first network runs.
    """
    os.environ.setdefault(CAPACITY, "0")
