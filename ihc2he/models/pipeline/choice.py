"""Settings of decoders that a validation chooses for the test that follows in the same run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import product
from math import isnan
from typing import Any, NamedTuple

from ihc2he.errors import ConfigError, did_you_mean
from ihc2he.models.pipeline.method import Method
from ihc2he.models.pipeline.segmenters import Learned, Segmenter
from ihc2he.models.pipeline.translators import Translator

Choose = Mapping[str, Mapping[str, Sequence[Any]]]

log = logging.getLogger(__name__)


class Variant(NamedTuple):
    """A segmenter with other settings of its decoder, which shares the networks.

    Attributes:
        settings: those that differ.
        segmenter: that has them.
    """

    settings: dict[str, Any]
    segmenter: Segmenter


class Choice:
    """Which segmenters a stage uses: in a validation all variants, afterwards those that were best.

    Args:
        translators: names of those in use.
        segmenters: in use, by name.
        choose: for some of them, values of settings of the decoder; all combinations are variants.

    Attributes:
        chosen: for each translator and segmenter with variants the best, and its F1.

    Raises:
        ConfigError: for an unknown segmenter or setting, one without a decoder, or no values.
    """

    def __init__(self, translators: Sequence[str], segmenters: Mapping[str, Segmenter], choose: Choose) -> None:
        self.translators = list(translators)
        self.segmenters = dict(segmenters)
        self.variants = _variants(segmenters, choose)
        self.chosen: dict[Method, tuple[Variant, float]] = {}

    def methods(self, stage: str) -> dict[Method, Segmenter]:
        """Return the segmenter of each pair, translators first.

        Raises:
            ConfigError: if a stage needs the choice before it was made.
        """
        if stage != "validate" and self.variants and not self.chosen:
            msg = f"model.choose={[*self.variants]}: a validation has to choose first: stages=[validate,test]."
            raise ConfigError(msg)
        found: dict[Method, Segmenter] = {}
        for translator in self.translators:
            for name, own in self.segmenters.items():
                pair = Method(translator, name)
                if stage == "validate" and name in self.variants:
                    found |= {Method(translator, label): one.segmenter for label, one in self.variants[name].items()}
                else:
                    found[pair] = self.chosen[pair][0].segmenter if pair in self.chosen else own
        return found

    def base_of(self, name: str) -> str:
        """Return the name of the segmenter whose maps a variant uses; that of any other segmenter is its own."""
        return next((base for base, own in self.variants.items() if name in own), name)

    def choose(self, values: Mapping[str, float]) -> None:
        """Choose, for each translator and segmenter with variants, the first of those with the highest F1.

        Args:
            values: of the validation, as `f1/<method>`.
        """
        for translator in self.translators:
            for name, own in self.variants.items():
                f1 = {label: values[f"f1/{Method(translator, label)}"] for label in own}
                best = max(own, key=lambda label: (not isnan(f1[label]), f1[label]))
                self.chosen[Method(translator, name)] = own[best], f1[best]
                log.info("Chosen for %s+%s: %s (F1 %.3f)", translator, name, own[best].settings, f1[best])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each setting that was chosen: method, setting, value, and the F1 of the validation."""
        return [
            {"method": str(method), "setting": key, "value": value, "val_f1": f1}
            for method, (variant, f1) in self.chosen.items()
            for key, value in variant.settings.items()
        ]


def fitting(
    pairs: Mapping[Method, Segmenter], translators: Mapping[str, Translator], tta: bool
) -> dict[Method, Segmenter]:
    """Return the pairs without those that would translate for a segmenter that does not look at images.

    Args:
        pairs: all of them.
        translators: by name.
        tta: whether maps are averaged over views.

    Raises:
        ConfigError: if none is left for a segmenter, or if one's nuclei would have to be averaged.
    """
    found = {}
    for pair, own in pairs.items():
        translator = translators[pair.translator]
        if not own.averaged and (tta or translator.members > 1):
            msg = (
                f"model.segmenters.{pair.segmenter} gives finished nuclei, which cannot be averaged over views or "
                f"networks: leave out model.tta, and the translator '{pair.translator}' if it is an ensemble."
            )
            raise ConfigError(msg)
        if own.reads_images or translator.role == "none":
            found[pair] = own
    for name in {pair.segmenter for pair in pairs} - {pair.segmenter for pair in found}:
        msg = (
            f"model.segmenters.{name} has nuclei that were found before, and nothing is translated for it: add none to "
            "model.use.translators."
        )
        raise ConfigError(msg)
    return found


def _variants(segmenters: Mapping[str, Segmenter], choose: Choose) -> dict[str, dict[str, Variant]]:
    """Return the segmenters to choose from, by the segmenter's name and by a name of their own."""
    found: dict[str, dict[str, Variant]] = {}
    for name, settings in choose.items():
        if name not in segmenters:
            msg = f"model.choose.{name}: there is no such segmenter.{did_you_mean(name, segmenters)}"
            raise ConfigError(msg)
        segmenter = segmenters[name]
        if not isinstance(segmenter, Learned):
            msg = f"model.choose.{name}: a {type(segmenter).__name__} has no decoder whose settings could be chosen."
            raise ConfigError(msg)
        if not isinstance(settings, Mapping) or not settings:
            msg = f"model.choose.{name}={settings}: expected a setting with values, such as {{least_heat: [0.3, 0.4]}}."
            raise ConfigError(msg)
        for key, values in settings.items():
            if not isinstance(values, list | tuple) or not values:
                msg = f"model.choose.{name}.{key}={values}: expected values to choose from, such as [0.3, 0.4, 0.5]."
                raise ConfigError(msg)
        found[name] = {}
        for combined in product(*settings.values()):
            own = dict(zip(settings, combined, strict=True))
            label = ",".join(f"{key}={value}" for key, value in own.items())
            found[name][f"{name}@{label}"] = Variant(own, segmenter.with_settings(own))
    return found
