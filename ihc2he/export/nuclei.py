"""Images to labelled nuclei in one TorchScript module, as QuPath's InstanSeg extension calls it.

Shape suffixes: b = batch, c = colour, h, w = height, width; n = nuclei.
"""

# No postponed annotations: TorchScript reads them.
from typing import Dict, Optional  # noqa: UP035  # TorchScript knows the type of `args` by this name only

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ihc2he.export.instances import CentresToLabels


class NucleiOfImage(nn.Module):
    """The network, and what divides its maps into nuclei.

    The extension stretches the colours of a region: of each channel, the 0.1 and 99.9 % percentiles become 0 and 1.
    The network was trained on colours as scanners give them, so they are moved back to a usual range.

    Args:
        maps: from images in [0, 1] to joined maps, as TorchScript.
        labels: from the maps to labels.
        step: px, of which the sides of images must be multiples for `maps`.
        typed: whether there are types.
        darkest: value of the darkest pixels of a usual image, in [0, 1].
        brightest: and of the brightest.
    """

    def __init__(
        self,
        maps: torch.jit.ScriptModule,
        labels: CentresToLabels,
        step: int,
        typed: bool,
        darkest: float,
        brightest: float,
    ) -> None:
        super().__init__()
        self.maps, self.labels = maps, labels
        self.step, self.typed = step, typed
        self.darkest, self.brightest = darkest, brightest

    def forward(self, x_bchw: Tensor, args: Optional[Dict[str, Tensor]] = None) -> list[Tensor]:  # noqa: UP006, UP045
        """Return the labels, (1, 1, H, W) float32, and with types the type of each, (N, 1) uint8, 0 = unknown.

        Of fewer than two nuclei there are two rows all the same, because QuPath cannot read a table of one number.

        Args:
            x_bchw: one image, stretched.
            args: of the extension; not used.
        """
        assert x_bchw.shape[0] == 1, "One image at a time."
        height, width = x_bchw.shape[2], x_bchw.shape[3]
        x_bchw = (x_bchw * (self.brightest - self.darkest) + self.darkest).clamp(0.0, 1.0)
        bottom, right = -height % self.step, -width % self.step
        x_bchw = F.pad(x_bchw, (0, right, 0, bottom), mode="reflect")
        maps_khw = self.maps(x_bchw)[0, :, :height, :width]
        labels_hw, types_n = self.labels(maps_khw)
        found = [labels_hw[None, None].float()]
        if self.typed:
            missing = max(0, 2 - types_n.shape[0])
            found.append(F.pad(types_n, (0, missing))[:, None].to(torch.uint8))
        return found
