"""Which translators and segmenters are built, and what tells them apart in the fingerprint of results."""

import pytest

from ihc2he.errors import ConfigError
from ihc2he.models.pipeline import module as pipeline_module
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.segmenters import Classical
from ihc2he.models.pipeline.translators import Identity, Recolour

CLASSES = ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]
RECOLOUR = {"h_gain": 1.7, "dab_gain": 0.2, "eosin_level": 0.22, "eosin_gain": 1.0}
TRANSLATORS = {"none": Identity(), "recolour": Recolour(**RECOLOUR)}
SEGMENTERS = {"classical": Classical()}


def pipeline(translators=("none",), segmenters=("classical",), more=(), **changes):
    use = {"translators": list(translators), "segmenters": list(segmenters)}
    return Pipeline(TRANSLATORS, SEGMENTERS | dict(more), use, **{"workers": 0, "resamples": 20} | changes)


def test_one_name_needs_no_brackets():
    use = {"translators": "none", "segmenters": "classical"}
    assert Pipeline(TRANSLATORS, SEGMENTERS, use).methods == ["none+classical"]


def test_only_what_is_used_is_built():
    broken = {"_target_": "ihc2he.models.pipeline.segmenters.Hovernet", "weights": None}
    assert pipeline(more={"hovernet": broken}).methods == ["none+classical"]
    with pytest.raises(ConfigError, match="no weights given"):
        pipeline(segmenters=["hovernet"], more={"hovernet": broken})


def test_the_fingerprint_knows_settings_and_weights(segmenter_bundle):
    def fingerprint(seed=0, **changes):
        node = {"_target_": "ihc2he.models.pipeline.segmenters.Hovernet", "weights": segmenter_bundle(seed=seed)}
        return pipeline(segmenters=["s"], more={"s": node}, **changes).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert "weights" not in first["segmenters"]["s"]  # no path
    assert first["segmenters"]["s"]["classes"] == CLASSES
    assert fingerprint(seed=1)["weights"] != first["weights"]  # the same folder, trained anew
    fused = {"fuse": ["none", "recolour"]}
    for change in ({"tta": True}, {"block": 64}, {"class_map": {"a": "b"}}, {"translators": ["recolour"]}, fused):
        assert fingerprint(**change) != first
    assert fingerprint(workers=1, resamples=7) == first  # what changes no result


def test_an_identical_bundle_elsewhere_is_the_same_and_another_version_or_other_classes_are_not(
    segmenter_bundle, monkeypatch
):
    def fingerprint(*given, **named):
        node = {
            "_target_": "ihc2he.models.pipeline.segmenters.Hovernet", "weights": segmenter_bundle(*given, **named),
        }  # fmt: skip
        return pipeline(segmenters=["s"], more={"s": node}).fingerprint

    assert fingerprint("here") == fingerprint("elsewhere")
    assert fingerprint("here", ["a", "b"]) != fingerprint("elsewhere", ["a", "c"])
    assert fingerprint("here") != fingerprint("elsewhere", keep_unmarked=False)  # another decoder
    before = fingerprint()
    monkeypatch.setattr(pipeline_module, "__version__", "0.0.0")
    assert fingerprint() != before
