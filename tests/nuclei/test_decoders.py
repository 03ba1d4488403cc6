"""Decoders: what every one of them has to keep, and what learned centres find."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from ihc2he.errors import ConfigError
from ihc2he.nuclei.decoders.base import find_and_vote
from ihc2he.nuclei.decoders.centres import CentresDecoder, heat
from ihc2he.nuclei.decoders.hover import HoverDecoder
from ihc2he.nuclei.instances import centroids
from ihc2he.tiling.augmentation import VIEWS, turned

DECODERS = [HoverDecoder(), HoverDecoder(keep_unmarked=False), CentresDecoder()]


def each(function):
    return pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: f"{type(d).__name__}{vars(d)}")(function)


def raw_of(decoder, inst_hw, types_hw=None, n_types=0, mpp=0.25):
    """Return the raw maps of a network that is sure and right."""
    targets = {name: torch.from_numpy(target)[None] for name, target in decoder.targets(inst_hw, mpp).items()}
    inside = torch.from_numpy((inst_hw > 0).astype(np.float32))[None, None]
    raw = {}
    for name, n in decoder.channels(n_types).items():
        if name in ("tp", "types"):
            kinds = torch.nn.functional.one_hot(torch.from_numpy(types_hw).long(), n).permute(2, 0, 1)[None]
            raw[name] = 20.0 * kinds - 10
        elif name == "hv":
            raw[name] = targets["hv"]
        elif name == "centre":
            raw[name] = targets["centre"][:, None].clamp(1e-6, 1 - 1e-6).logit()
        else:
            sure = 20 * inside - 10
            raw[name] = sure if n == 1 else torch.cat([-sure, sure], 1)
        assert raw[name].shape[1] == n
    return raw


def found_by(decoder, inst_hw, *types, mpp=0.25, **changes):
    maps_bkhw = decoder.reduced(decoder.join(raw_of(decoder, inst_hw, *types, mpp=mpp, **changes)))
    return decoder.find(maps_bkhw[0].numpy(), mpp)


@each
@pytest.mark.parametrize("seed", range(4))
def test_what_was_learned_is_found_again(decoder, ellipses, seed):
    truth = ellipses(192, 20, seed)
    found = found_by(decoder, truth)
    n, m = len(np.unique(truth)) - 1, len(found.centres_n2)
    assert n - m <= (1 if isinstance(decoder, CentresDecoder) else 5)  # HoVer maps lose what others cover in part
    assert m <= n
    assert np.array_equal(np.unique(found.nuclei.inst_hw), np.arange(m + 1))
    shared = sum(np.bincount(truth[found.nuclei.inst_hw == i])[1:].max(initial=0) for i in range(1, m + 1))
    assert shared > 0.85 * (truth > 0).sum()
    assert len(found.nuclei.types_n) == len(found.nuclei.shares_n) == len(found.scores_n) == len(found.centres_n2)
    assert 0.7 < found.scores_n.min() <= found.scores_n.max() <= 1


@each
def test_types_follow_by_majority(decoder):
    inst = np.zeros((60, 90), np.int32)
    inst[10:30, 10:30], inst[30:50, 55:75] = 1, 2
    types = np.select([inst == 1, inst == 2], [2, 1], 0)
    found = found_by(decoder, inst, types, n_types=2)
    assert found.nuclei.types_n.tolist() == [2, 1]
    assert found_by(decoder, inst).nuclei.types_n.tolist() == [0, 0]


@each
def test_maps_of_another_view_are_turned_back(decoder, ellipses):
    truth = ellipses(64, 4, 1)[:, :50]
    maps = decoder.join(raw_of(decoder, np.ascontiguousarray(truth)))
    for view in VIEWS:
        seen = np.ascontiguousarray(turned(torch.from_numpy(truth)[None, None], view)[0, 0].numpy())
        back = decoder.turned_back(decoder.join(raw_of(decoder, seen)), view)
        if "centre" in decoder.channels(0):  # half a pixel of rounding
            assert (back - maps).abs().mean() < 0.02
        else:
            torch.testing.assert_close(back, maps, atol=1e-5, rtol=0)


@each
def test_votes_are_the_pixels_of_nuclei(decoder, ellipses):
    truth = ellipses(64, 5, 2)
    votes = decoder.votes(decoder.join(raw_of(decoder, truth)))
    assert torch.equal(votes[0], torch.from_numpy((truth > 0).astype(np.float32)))
    found, agreement = find_and_vote(
        decoder.find, decoder.join(raw_of(decoder, truth))[0].numpy(), votes[0].numpy(), 0.25, (128, 128)
    )
    assert found.nuclei.inst_hw.shape == (128, 128)
    assert agreement.tolist() == [1.0] * len(found.centres_n2)


@each
def test_empty_maps_hold_no_nucleus(decoder):
    found = found_by(decoder, np.zeros((16, 20), np.int32))
    assert found.nuclei.inst_hw.shape == (16, 20)
    assert len(found.centres_n2) == len(found.scores_n) == 0
    assert found.centres_n2.shape == (0, 2)


@each
def test_it_travels_and_equals_what_does_the_same(decoder):
    assert pickle.loads(pickle.dumps(decoder)) == decoder
    assert sum(decoder == other for other in DECODERS) == 1


def test_a_worker_process_loads_no_torch():
    code = "import sys, ihc2he.nuclei.decoders.hover, ihc2he.nuclei.decoders.centres; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------ centres


def test_touching_nuclei_are_told_apart_by_their_centres():
    inst = np.zeros((60, 90), np.int32)
    inst[20:40, 20:40], inst[20:40, 40:60] = 1, 2
    found = found_by(CentresDecoder(), inst)
    assert len(found.centres_n2) == 2
    assert ((found.nuclei.inst_hw > 0) == (inst > 0)).all()
    assert (found.nuclei.inst_hw[20:40, 20:38] == 1).all()
    assert (found.nuclei.inst_hw[20:40, 42:60] == 2).all()


def test_foreground_without_a_centre_and_centres_without_foreground_are_no_nuclei():
    inst = np.zeros((60, 90), np.int32)
    inst[10:30, 10:30], inst[30:50, 55:75] = 1, 2
    raw = raw_of(CentresDecoder(), inst)
    raw["centre"][..., :45] = -20
    raw["mask"][..., 45:] = -20
    found = CentresDecoder().find(CentresDecoder().join(raw)[0].numpy(), 0.25)
    assert not found.nuclei.inst_hw.any()
    assert len(found.centres_n2) == 0


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_the_heat_is_a_gaussian_of_one_micron(mpp):
    inst = np.zeros((81, 81), np.int32)
    inst[20:61, 20:61] = 1
    heat_hw = heat(inst, mpp)
    step = round(1 / mpp)
    assert heat_hw[40, 40] == 1
    assert heat_hw[40, 40 + step] == pytest.approx(np.exp(-0.5), abs=1e-6)
    assert np.array_equal(centroids(inst), [[40, 40]])


def test_a_large_nucleus_with_several_uncertain_centres_is_one():
    inst = np.zeros((120, 120), np.int32)
    inst[20:80, 20:90] = 1
    raw = raw_of(CentresDecoder(), inst)
    several = np.zeros_like(inst)
    for i, (y, x) in enumerate(((40, 38), (52, 56), (44, 74)), 1):
        several[y, x] = i
    heat_hw = 0.55 * heat(several, 0.25 / 6)  # wide, so that the heat between them stays high
    raw["centre"] = torch.from_numpy(heat_hw).clamp(1e-6, 1 - 1e-6).logit()[None, None]
    found = CentresDecoder().find(CentresDecoder().join(raw)[0].numpy(), 0.25)
    assert np.array_equal(found.nuclei.inst_hw > 0, inst > 0)
    assert len(found.centres_n2) == 1
    assert found.scores_n[0] == pytest.approx(0.55, abs=0.03)


def test_a_large_nucleus_may_have_a_faint_centre_and_a_small_one_may_not():
    inst = np.zeros((60, 90), np.int32)
    inst[10:30, 10:30], inst[30:36, 55:61] = 1, 2  # 25 and 2 um2
    raw = raw_of(CentresDecoder(), inst)
    raw["centre"] = torch.from_numpy(0.3 * heat(inst, 0.25)).clamp(1e-6, 1 - 1e-6).logit()[None, None]
    found = CentresDecoder().find(CentresDecoder().join(raw)[0].numpy(), 0.25)
    assert np.array_equal(found.nuclei.inst_hw > 0, inst == 1)


def test_the_least_heat_of_centres_is_a_setting_and_a_large_nucleus_needs_half_of_it():
    inst = np.zeros((60, 90), np.int32)
    inst[10:30, 10:30], inst[30:36, 55:61] = 1, 2  # 25 and 2 um2
    raw = raw_of(CentresDecoder(), inst)
    raw["centre"] = torch.from_numpy(0.3 * heat(inst, 0.25)).clamp(1e-6, 1 - 1e-6).logit()[None, None]
    maps_khw = CentresDecoder().join(raw)[0].numpy()
    for least_heat, kept in ((0.2, [1, 2]), (0.5, [1]), (0.7, [])):  # smoothed, the heat is about .28
        inst_hw = CentresDecoder(least_heat=least_heat).find(maps_khw, 0.25).nuclei.inst_hw
        assert np.array_equal(inst_hw > 0, np.isin(inst, kept))


@pytest.mark.parametrize("kind", [CentresDecoder, HoverDecoder])
def test_a_lower_threshold_finds_the_less_likely_nuclei_too(kind):
    inst = np.zeros((60, 60), np.int32)
    inst[10:26, 10:26], inst[34:50, 34:50] = 1, 2
    maps_khw = kind().join(raw_of(kind(), inst))[0].numpy()
    maps_khw[0] *= np.where(inst == 2, 0.4, 1)
    for threshold, n in ((0.3, 2), (0.5, 1)):
        decoder = kind(threshold=threshold)
        inst_hw = decoder.find(maps_khw, 0.25).nuclei.inst_hw
        assert inst_hw.max() == n
        assert np.array_equal(decoder.votes(torch.from_numpy(maps_khw)[None])[0] > 0, inst_hw > 0)


@pytest.mark.parametrize("kind", [CentresDecoder, HoverDecoder])
@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1])
def test_a_threshold_beyond_all_probabilities_is_refused(kind, threshold):
    with pytest.raises(ConfigError, match=rf"decoder\.threshold={threshold}: expected above 0 and below 1"):
        kind(threshold=threshold)
