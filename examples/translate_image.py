"""Make virtual H&E of IHC: python examples/translate_image.py IMAGE UM_PER_PX OUT.png [RUN/bundles/g_ihc2he]."""

import sys
from pathlib import Path

import torch

from ihc2he.images.decoding import read_image
from ihc2he.images.source import ArraySource
from ihc2he.images.writing import write_png
from ihc2he.models.pipeline.inference import translate
from ihc2he.models.pipeline.translators import LearnedTranslator, Recolour, Translator
from ihc2he.models.pixels import pixels
from ihc2he.tiling.resampling import resized


def main(path: str, mpp: str, out: str, bundle: str | None = None) -> None:
    """Write the translated image, of the size of the original."""
    translator: Translator = Recolour(h_gain=1.7, dab_gain=0.2, eosin_level=0.22, eosin_gain=1.0)  # not trained
    if bundle is not None:
        translator = LearnedTranslator(bundle).eval()
    image = read_image(Path(path))
    x_bchw = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        he_bchw = translate(translator, x_bchw, float(mpp), states=[translator.prepare(ArraySource(image))])
    write_png(Path(out), pixels(resized(he_bchw, *image.shape[:2]))[0])
    print(out)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) in (4, 5) else __doc__)
