"""Synthetic tiles by the command line: from a bundle to files that do not depend on batches, breaks or processes."""

import csv
import hashlib
import json

import cv2
import pytest
import torch

from ihc2he.callbacks.bundles import Bundles
from ihc2he.errors import ConfigError
from ihc2he.models.bundle import load_bundle, save_bundle
from ihc2he.models.generation.draws import latents
from ihc2he.models.generation.sampling import TileSampler

LEVELS = ["0", "1+", "2+", "3+"]


@pytest.fixture
def bundle(tiny, run, tmp_path):
    """Return the folder of a generator after one epoch."""
    run(tiny("sngan", d_steps=1), Bundles(str(tmp_path / "bundles")), max_epochs=1)
    return tmp_path / "bundles" / "generator"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()}


def rows(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_tiles_are_balanced_named_and_the_same_however_they_are_made(cli, bundle, tmp_path):
    make = ["experiment=gan_tiles", f"model.weights={bundle}", "trainer=cpu", "seed=7"]
    whole = cli(*make, "data.count=10", "out=one")
    part = cli(*make, "data.count=4", "data.batch_size=2", "out=parts")
    assert whole.status == part.status == 0, whole.err + part.err
    first = (tmp_path / "parts" / "0" / "000000.png").stat().st_mtime_ns
    rest = cli(*make, "data.count=10", "data.batch_size=3", "out=parts")
    assert "Synthetic tiles: 10 in parts" in rest.err + rest.out
    assert (tmp_path / "parts" / "0" / "000000.png").stat().st_mtime_ns == first  # was not made again
    assert contents(tmp_path / "one") == contents(tmp_path / "parts")

    found = rows(tmp_path / "one" / "manifest.csv")
    assert [row["level"] for row in found] == (3 * LEVELS)[:10]
    digest = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    assert {(row["seed"], row["weights"]) for row in found} == {("7", digest)}
    assert [row["digest"] for row in rows(tmp_path / "one" / "trained_on.csv")] == ["0a", "1b"]
    assert [row["name"] for row in found[:2]] == ["0/000000.png", "1+/000001.png"]
    network, info = load_bundle(bundle)
    assert (info["classes"], info["latent_size"], info["role"]) == (LEVELS, 5, "generator")
    with torch.no_grad():
        made = network(latents([(7, 6)], 5), torch.tensor([2]))[0]
    image = cv2.imread(str(tmp_path / "one" / "2+" / "000006.png"))[:, :, ::-1]
    assert (torch.from_numpy(image.copy()).permute(2, 0, 1) - (made + 1) * 127.5).abs().max() <= 0.5 + 1e-3

    done = cli(*make, "data.count=10", "out=one", "seed=8")
    assert done.status == 2
    assert "out=one was begun with other settings: seed: 7 before, 8 now" in done.err


def test_two_processes_make_what_one_makes(bundle, run, tmp_path):
    """Each takes its share of the numbers, and a tile depends on its number alone."""
    sampler = TileSampler(str(bundle), seed=3)
    shares = [sampler.predict_step({"number": [*range(rank, 6, 2)]}, 0) for rank in range(2)]
    whole = sampler.predict_step({"number": [*range(6)]}, 0)
    again = sorted((made for share in shares for made in share), key=lambda made: made.number)
    assert [(a.number, a.level, a.image.tobytes()) for a in again] == [
        (b.number, b.level, b.image.tobytes()) for b in whole
    ]
    assert len({made.image.tobytes() for made in whole}) == 6


def test_what_is_no_generator_is_named(bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.weights=null: pass the generator of a finished run"):
        TileSampler(None)
    network, info = load_bundle(bundle)
    other = save_bundle(network, tmp_path / "other", {"module": info["module"], "role": "translator"})
    with pytest.raises(ConfigError, match="found a translator, expected a generator"):
        TileSampler(str(other))


def test_the_bundle_says_what_it_is(bundle):
    info = json.loads((bundle / "config.json").read_text())
    assert info["module"]["size"] == info["size"] == 16
    assert info["value_range"] == [-1.0, 1.0]
    assert info["adversarial"] == "hinge"
