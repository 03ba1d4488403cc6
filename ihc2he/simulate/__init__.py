"""Simulated tissue: one geometry, rendered in H&E and in IHC, with the truth of every nucleus.

`write_bci`, `write_pannuke`, `write_endonuke` and `write_nuclei` write the public layouts of the datasets,
`write_slide` a slide of any size.
Everything is a pure function of a seed. Uses only NumPy, OpenCV and SciPy.
"""

from ihc2he.simulate.bci import write_bci
from ihc2he.simulate.endonuke import write_endonuke
from ihc2he.simulate.nuclei import write_nuclei
from ihc2he.simulate.pannuke import write_pannuke
from ihc2he.simulate.slide import write_slide

__all__ = ["write_bci", "write_endonuke", "write_nuclei", "write_pannuke", "write_slide"]
