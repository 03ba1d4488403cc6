"""Find and type the nuclei of an image: python examples/find_nuclei.py IMAGE UM_PER_PX OUT."""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ihc2he.images.decoding import read_image
from ihc2he.models.pipeline.inference import predict
from ihc2he.models.pipeline.segmenters import Learned, Segmenter
from ihc2he.models.pipeline.translators import Identity
from ihc2he.nuclei.decoders.base import Found, find_and_vote
from ihc2he.nuclei.geojson import write_geojson
from ihc2he.nuclei.table import nuclei_table, write_table


def find_nuclei(image: NDArray[np.uint8], mpp: float, segmenter: Segmenter) -> Found:
    """Return the nuclei of an image, on its own grid.

    Args:
        image: HxWx3 uint8 RGB; of some thousand px at most.
        mpp: um/px.
        segmenter: with the weights.
    """
    x_bchw = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    maps = predict(Identity(), {"own": segmenter}, x_bchw, mpp)["own"]
    maps_khw = segmenter.reduced(maps.maps_bkhw)[0].numpy()
    return find_and_vote(segmenter.find, maps_khw, None, segmenter.mpp or mpp, image.shape[:2])[0]


def main(path: str, mpp: str, out: str) -> None:
    """Write OUT/NAME.geojson for QuPath and OUT/NAME.csv."""
    segmenter = Learned("builtin", name="centres")  # or a bundle: RUN/bundles/segmenter, OWNER/NAME@COMMIT
    image = read_image(Path(path))
    nuclei = find_nuclei(image, float(mpp), segmenter).nuclei
    table = nuclei_table(nuclei.inst_hw, nuclei.types_n, nuclei.shares_n, mpp=float(mpp))
    target = Path(out) / Path(path).stem
    write_geojson(target.with_suffix(".geojson"), table, segmenter.classes)
    write_table(target.with_suffix(".csv"), table, segmenter.classes)
    print(f"{len(table)} nuclei: {target}.geojson, {target}.csv")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 4 else __doc__)
