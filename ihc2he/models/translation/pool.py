"""The history of generated images that steadies the discriminators (Shrivastava et al., CVPR 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """A buffer of generated images that answers with a mixture of new and old ones.

    Below capacity an image is stored and returned. At capacity, with probability 1/2 a random stored image is
    returned and replaced by the new one; otherwise the new one is returned. The pool owns its random generator and
    its state goes into checkpoints, so that a resumed run draws what the uninterrupted one would have drawn.

    Args:
        size: capacity in images; 0 passes everything through.
        seed: of the pool's own generator.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self.images: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    def query(self, fake_bchw: Tensor) -> Tensor:
        """Return as many images as given, detached: the given ones or older ones.

        A stored image of another size than the given one is replaced, never returned.
        """
        fake_bchw = fake_bchw.detach()
        if self.size == 0:
            return fake_bchw
        return torch.stack([self._exchange(image) for image in fake_bchw])

    def _exchange(self, image_chw: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image_chw.clone())
            return image_chw
        if torch.rand((), generator=self.generator) < 0.5:
            return image_chw
        i = int(torch.randint(self.size, (), generator=self.generator))
        old, self.images[i] = self.images[i], image_chw.clone()
        return old.to(image_chw) if old.shape == image_chw.shape else image_chw

    def state_dict(self) -> dict[str, Any]:
        """Return the stored images, on the CPU, and the state of the generator."""
        return {"images": [image.cpu() for image in self.images], "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore what `state_dict` returned; images beyond this pool's size are dropped."""
        self.images = [image.to(device) for image in state["images"]][: self.size]
        self.generator.set_state(state["generator"].cpu())
