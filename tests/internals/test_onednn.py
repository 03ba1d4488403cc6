"""Networks on CPUs keep nothing for the shapes that they have seen, if a process wants that."""

import os
import subprocess
import sys

import pytest
import torch

from ihc2he.internals.onednn import CAPACITY
from ihc2he.models.pipeline.segmenters import Classical
from ihc2he.models.pipeline.slides import SlidePipeline
from ihc2he.models.pipeline.translators import Identity

PROGRAM = """
import sys, torch
from ihc2he.internals.onednn import forget_shapes
if sys.argv[1] == "forget":
    forget_shapes()
network, x = torch.nn.Conv2d(3, 16, 3), torch.zeros(2, 3, 64, 64)
with torch.no_grad(), torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
    network(x)
    network(x)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_nothing_is_kept_for_a_shape(monkeypatch):
    monkeypatch.delenv(CAPACITY, raising=False)

    def said(how):
        return subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout

    if "cache_hit" not in said("keep"):
        pytest.skip("here oneDNN keeps nothing, or does not say so")
    forgetful = said("forget")
    assert "cache_miss" in forgetful
    assert "cache_hit" not in forgetful


class Watching(Classical):
    """Notes what oneDNN would read when the first network runs."""

    def fold(self):
        self.seen = os.environ.get(CAPACITY)


def test_windows_of_slides_leave_nothing(monkeypatch):
    monkeypatch.delenv(CAPACITY)
    use, segmenter = {"translators": ["none"], "segmenters": ["classical"]}, Watching()
    pipeline = SlidePipeline({"none": Identity()}, {"classical": segmenter}, use, workers=0)
    assert CAPACITY not in os.environ
    with pytest.raises(RuntimeError, match="not attached"):  # for lack of data
        pipeline.setup("predict")
    assert segmenter.seen == "0"
