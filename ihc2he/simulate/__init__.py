"""Simulated tissue: one geometry, rendered in H&E and in IHC, with every nucleus known.

`write_bci`, `write_pannuke`, `write_endonuke` and `write_nuclei` write trees in the public layouts of the data sets.
Everything is a pure function of a seed. Plain NumPy, OpenCV and SciPy.
"""

from ihc2he.simulate.bci import write_bci
from ihc2he.simulate.endonuke import write_endonuke
from ihc2he.simulate.nuclei import write_nuclei
from ihc2he.simulate.pannuke import write_pannuke

__all__ = ["write_bci", "write_endonuke", "write_nuclei", "write_pannuke"]
