"""Run an exported package of nuclei: python examples/run_package.py PACKAGE IMAGE UM_PER_PX.

python -m ihc2he.export builtin out=packages writes some: packages/qupath, packages/bioimageio.
"""

import sys
from pathlib import Path

from find_nuclei import find_nuclei

from ihc2he.images.decoding import read_image
from ihc2he.models.pipeline.outside import Package


def main(package: str, path: str, mpp: str) -> None:
    """Print what is found. TorchScript in a package is a program: trust=True only if you know who made it."""
    segmenter = Package(package, trust=True)
    nuclei = find_nuclei(read_image(Path(path)), float(mpp), segmenter).nuclei
    for number, name in enumerate(["unknown", *segmenter.classes]):
        print(f"{name}: {(nuclei.types_n == number).sum()}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 4 else __doc__)
