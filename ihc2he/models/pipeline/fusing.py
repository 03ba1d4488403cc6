"""Several translators of the same tile as one method, whose maps are averaged like those of an ensemble.

Shape suffixes: b = batch, c = colour, h, w = height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ihc2he.errors import ConfigError
from ihc2he.images.source import ImageSource
from ihc2he.models.pipeline.translators import Translator
from ihc2he.stain.white import White


class Fused(Translator):
    """Several translators, whose members are the members of this one; its H&E is that of the first that translates.

    Args:
        parts: the translators by name.

    Raises:
        ConfigError: for fewer than two, or one that does not start from the IHC.
    """

    def __init__(self, parts: Mapping[str, Translator]) -> None:
        super().__init__()
        if len(parts) < 2 or any(part.needs_he for part in parts.values()):
            msg = f"model.fuse={[*parts]}: expected two or more translators that start from the IHC."
            raise ConfigError(msg)
        self.parts = nn.ModuleDict(parts)
        ordered = sorted(parts, key=lambda name: parts[name].role == "none")
        self.turns = [(name, member) for name in ordered for member in range(parts[name].members)]
        self.members = len(self.turns)

    def of_member(self, member: int, states: Sequence[Any]) -> tuple[Translator, int, Sequence[Any]]:
        """Return the part that a member belongs to, and what is its own of the states."""
        name, own = self.turns[member]
        part: Any = self.parts[name]
        return part, own, [state[name] for state in states]

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the H&E of images by one member, at its own pixel size."""
        part, own, states = self.of_member(member, states)
        return part(x_bchw, own, states)

    def prepare(self, image: ImageSource) -> dict[str, Any]:
        """Return what each part needs from a whole image, by name."""
        return {name: part.prepare(image) for name, part in self.parts.items()}  # type: ignore[operator]

    def prepare_divided(self, image: ImageSource) -> dict[str, Any]:
        """Like `prepare`, for an image that is translated in several blocks."""
        return {name: part.prepare_divided(image) for name, part in self.parts.items()}  # type: ignore[operator]

    def white_of(self, image: ImageSource) -> White:
        """Return the white point of the averaged optical density: the geometric mean over members."""
        whites = {name: part.white_of(image) for name, part in self.parts.items()}  # type: ignore[operator]
        red, green, blue = np.exp(np.mean(np.log([whites[name] for name, _ in self.turns]), 0))
        return float(red), float(green), float(blue)

    def finish(self) -> None:
        """Let each part log its summary."""
        for part in self.parts.values():
            part.finish()  # type: ignore[operator]
