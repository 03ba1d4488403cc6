"""Command line of the simulator."""

import os
import sys
from collections.abc import Callable

from ihc2he.arguments import keyword_arguments
from ihc2he.errors import ConfigError, Ihc2heError, did_you_mean
from ihc2he.explain import write_what_is_possible
from ihc2he.simulate import write_bci, write_endonuke, write_nuclei, write_pannuke, write_slide

HELP = """\
Write simulated tissue in the public layout of a dataset, or as a slide.

  python -m ihc2he.simulate LAYOUT out=FOLDER tiles=N [size=PIXELS] [seed=S] [workers=W]
  python -m ihc2he.simulate slide out=FILE.ome.tif [stain=ihc|he] [mpp=UM] [size=PIXELS] [seed=S] [workers=W]

LAYOUT
  bci        pairs of H&E and IHC (HER2), 0.46 um/px   [size=1024] [aligned=false] [cases=0]
  pannuke    H&E of 19 tissues in three folds, 0.25    [size=256]
  endonuke   IHC with keypoints, 0.5                   [size=200]
  nuclei     H&E with instances, 0.25                  [size=512]
  slide      a slide of any size, and a table of its nuclei; both stains show the same cells
                                                       [size=20000] [stain=ihc] [mpp=0.25]

  out        folder to write to; a killed run continues there. For slide: the file
  tiles      total number over all folds and splits
  size       side of a tile in pixels
  seed       the same seed gives the same bytes        [seed=0]
  aligned    bci: both stains show the same cells
  cases      bci: cases whose tiles are in both splits; 0 = a case in one only
  workers    processes                                 [workers=number of cores]
"""
LAYOUTS: dict[str, Callable] = {
    "bci": write_bci,
    "pannuke": write_pannuke,
    "endonuke": write_endonuke,
    "nuclei": write_nuclei,
    "slide": write_slide,
}


def main(arguments: list[str]) -> int:
    """Return the exit status of the command line: 0, or 2 after one line that says what is wrong."""
    write_what_is_possible()
    if not arguments or any(a in ("-h", "--help", "help") for a in arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    try:
        write, values = parse(arguments)
        print(write(**values))
    except Ihc2heError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse(arguments: list[str]) -> tuple[Callable, dict[str, str | int | float | bool]]:
    """Return the function that writes the layout, and its keyword arguments.

    >>> parse(["nuclei", "out=here", "tiles=4", "workers=1"])[1]
    {'workers': 1, 'out': 'here', 'tiles': 4}

    Raises:
        ConfigError: if a name or the type of a value is wrong, or if a name is missing.
    """
    layout, *pairs = arguments
    if layout not in LAYOUTS:
        msg = f"There is no layout '{layout}'.{did_you_mean(layout, LAYOUTS)}"
        raise ConfigError(msg)
    write = LAYOUTS[layout]
    return write, {"workers": os.cpu_count() or 1, **keyword_arguments(write, pairs, layout)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
