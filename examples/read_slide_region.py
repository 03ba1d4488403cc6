"""Read a region of a slide: python examples/read_slide_region.py SLIDE UM_PER_PX LEFT_UM TOP_UM SIDE_UM OUT.png."""

import sys
from pathlib import Path

from ihc2he.images.rescaled import Rescaled
from ihc2he.images.slides import open_slide
from ihc2he.images.writing import write_png


def main(path: str, mpp: str, left: str, top: str, side: str, out: str) -> None:
    """Write a square of the slide at this pixel size; only what it touches is read."""
    slide = open_slide(Path(path))
    print(f"{path}: {slide.shape[1]} x {slide.shape[0]} px of {slide.mpp} um")
    rescaled = Rescaled(slide, float(mpp))
    starts = [round(float(um) / float(mpp)) for um in (top, left)]
    size = round(float(side) / float(mpp))
    rows, columns = (
        slice(start, min(start + size, length)) for start, length in zip(starts, rescaled.shape, strict=True)
    )
    write_png(Path(out), rescaled.read(rows, columns))
    print(out)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 7 else __doc__)
