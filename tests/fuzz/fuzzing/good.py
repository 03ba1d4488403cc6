"""The good inputs that mutations start from: simulated tissue in every layout, small trained models, and the runs."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from .harness import Scenario, in_child
from .slides import write_slides

QUIET = (
    "paths.outputs=out", "hydra.run.dir=out/run", "logger=csv", "trainer=cpu", "+trainer.enable_progress_bar=false",
    "callbacks.progress=null", "data.num_workers=0", "trainer.precision=32-true",
)  # fmt: skip
BRIEF = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1")
BCI = ("experiment=smoke/cyclegan_bci", "data=bci", "data.simulate=null", "data.root=bci", "data.store=store",
       "model.metrics=[psnr]", "callbacks.panels=null", "callbacks.best=null", *QUIET)  # fmt: skip
PANNUKE = ("experiment=smoke/hovernet_pannuke", "data=pannuke", "data.simulate=null", "data.root=pannuke",
           "data.store=store", "callbacks.panels=null", "callbacks.best=null", "callbacks.phases=null",
           *QUIET)  # fmt: skip
NUCLEI = ("experiment=hovernet_nuclei", "data.root=nuclei", "data.store=store",
          "data.classes=[neoplastic,inflammatory,connective,dead,epithelial]", "data.crop_size=32", "data.batch_size=1",
          "model/encoder=preact_small", "model.encoder.width=4", "model.width=32", "model.window=48",
          "model.overlap=16", "model.workers=0", "callbacks.panels=null", "callbacks.best=null",
          "callbacks.phases=null", "stages=[test]", "ckpt_path=hovernet.ckpt", *QUIET)  # fmt: skip
UNPAIRED = ("experiment=cyclegan_unpaired", "data.root=unpaired", "data.store=store", "data.mpp_ihc=0.5",
            "data.mpp_he=0.5", "data.crop_size=32", "model/generator=resnet_small",
            "model/discriminator=patch_small", "model.generator.width=8", "model.generator.n_blocks=1",
            "model.discriminator.width=8", "model.features=null", "callbacks.panels=null", "callbacks.best=null",
            "stages=[test]", "ckpt_path=cyclegan.ckpt", *QUIET)  # fmt: skip
ENDONUKE = ("experiment=smoke/pipeline_endonuke", "data=endonuke", "data.simulate=null", "data.root=endonuke",
            "model.use.translators=[recolour]", "callbacks.pages=null", *QUIET)  # fmt: skip
POINTS = ("experiment=pipeline_points", "data.root=points", "data.classes=[stroma,epithelium,other]",
          "model.use.translators=[recolour]", "model.use.segmenters=[classical]", "model.workers=0",
          "model.resamples=50", "callbacks.pages=null", *QUIET)  # fmt: skip
PREDICT = ("experiment=predict_tiles", "data.path=tiles", "model.use.translators=[recolour]",
           "model.use.segmenters=[classical]", "model.workers=0", "callbacks.writer.write=[geojson,nuclei]",
           *QUIET)  # fmt: skip
SLIDE = ("experiment=predict_slides", "model.use.translators=[recolour]", "model.use.segmenters=[classical]",
         "model.workers=0", "callbacks.writer.workers=0", "callbacks.writer.table=csv",
         "callbacks.writer.write=[nuclei]", *QUIET)  # fmt: skip

SCENARIOS: Mapping[str, Scenario] = {
    "CycleGAN, fit": Scenario((*BCI, *BRIEF, "stages=[fit]"), ("bci",)),
    "CycleGAN, fit on a store": Scenario((*BCI, *BRIEF, "stages=[fit]"), ("store",)),
    "CycleGAN, resume": Scenario(
        (*BCI, *BRIEF, "stages=[fit]", "trainer.max_epochs=2", "ckpt_path=cyclegan.ckpt"), ("bci", "cyclegan.ckpt")
    ),
    "CycleGAN, test": Scenario((*BCI, "stages=[test]", "ckpt_path=cyclegan.ckpt"), ("bci", "cyclegan.ckpt")),
    "HoVer-Net, fit": Scenario((*PANNUKE, *BRIEF, "stages=[fit]"), ("pannuke",)),
    "HoVer-Net, official weights": Scenario(
        (*PANNUKE, *BRIEF, "stages=[fit]", "model.weights=official.tar"), ("pannuke", "official.tar")
    ),
    "HoVer-Net, resume": Scenario(
        (*PANNUKE, *BRIEF, "stages=[fit]", "trainer.max_epochs=2", "ckpt_path=hovernet.ckpt"),
        ("pannuke", "hovernet.ckpt"),
    ),
    "HoVer-Net, test": Scenario((*PANNUKE, "stages=[test]", "ckpt_path=hovernet.ckpt"), ("pannuke", "hovernet.ckpt")),
    "HoVer-Net, ensemble": Scenario(
        (*PANNUKE, "stages=[test]", "ckpt_path=hovernet.ckpt", "model.ensemble=[segmenter]"),
        ("pannuke", "hovernet.ckpt", "segmenter"),
    ),
    "HoVer-Net, test on a store": Scenario(
        (*PANNUKE, "stages=[test]", "ckpt_path=hovernet.ckpt", "data.store=nstore"), ("nstore", "hovernet.ckpt")
    ),
    "own nuclei": Scenario(NUCLEI, ("nuclei", "hovernet.ckpt")),
    "unpaired": Scenario(UNPAIRED, ("unpaired", "cyclegan.ckpt")),
    "unpaired, skip": Scenario((*UNPAIRED, "data.on_bad_file=skip"), ("unpaired", "cyclegan.ckpt")),
    "EndoNuke": Scenario(ENDONUKE, ("endonuke",)),
    "EndoNuke, skip": Scenario((*ENDONUKE, "data.bad_labels=skip"), ("endonuke",)),
    "points": Scenario(POINTS, ("points",)),
    "prediction": Scenario(PREDICT, ("tiles",)),
    "slide": Scenario((*SLIDE, "data.path=ome"), ("ome",)),
    "slide, SVS": Scenario((*SLIDE, "data.path=svs"), ("svs",)),
    "slide, DICOM": Scenario((*SLIDE, "data.path=dcm"), ("dcm",)),
    "slide, regions": Scenario((*SLIDE, "data.path=ome", "data.regions=regions.geojson"), ("ome", "regions.geojson")),
    "prediction, own target": Scenario(
        (*PREDICT, "model.use.translators=[reinhard]", "model.translators.reinhard.target=target"), ("tiles", "target")
    ),
    "prediction, bundle of a generator": Scenario(
        (*PREDICT, "model.use.translators=[cyclegan]", "model.translators.cyclegan.weights=g_ihc2he"),
        ("tiles", "g_ihc2he"),
    ),
    "prediction, checkpoint of a generator": Scenario(
        (
            *PREDICT,
            "model.use.translators=[cyclegan]",
            "model.translators.cyclegan.weights=cyclegan.ckpt",
            "model.translators.cyclegan.mpp=0.46",
        ),
        ("tiles", "cyclegan.ckpt"),
    ),
    "prediction, two generators": Scenario(
        (*PREDICT, "model.use.translators=[cyclegan]", "model.translators.cyclegan.weights=[g_ihc2he,second]"),
        ("tiles", "g_ihc2he", "second"),
    ),
    "prediction, bundle of a segmenter": Scenario(
        (*PREDICT, "model.use.segmenters=[hovernet]", "model.segmenters.hovernet.weights=segmenter"),
        ("tiles", "segmenter"),
    ),
    "prediction, checkpoint of a segmenter": Scenario(
        (
            *PREDICT,
            "model.use.segmenters=[hovernet]",
            "model.segmenters.hovernet.weights=hovernet.ckpt",
            "model.segmenters.hovernet.mpp=0.25",
        ),
        ("tiles", "hovernet.ckpt"),
    ),
}


def build_world(world: Path, models: bool = True) -> None:
    """Make all good inputs in a folder, in a child process.

    Args:
        world: an empty folder; it appears when complete.
        models: train models too, which takes most of the time.
    """
    if world.is_dir():
        return
    part = world.with_name(world.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    in_child(lambda: _datasets(part))
    if models:
        in_child(lambda: _models(part))
    part.rename(world)


def _datasets(world: Path) -> None:
    from ihc2he.simulate.bci import write_bci
    from ihc2he.simulate.endonuke import write_endonuke
    from ihc2he.simulate.pannuke import write_pannuke

    write_bci(world / "bci", tiles=6, size=64)
    write_pannuke(world / "pannuke", tiles=6, size=64)
    write_endonuke(world / "endonuke", tiles=3, size=100)
    _own_tiles(world)
    write_slides(world)
    for name in ("bci", "pannuke"):
        shutil.rmtree(world / name / "truth")
    for name in ("dataset/images_context", "truth/markers"):
        shutil.rmtree(world / "endonuke" / name, ignore_errors=True)


def _own_tiles(world: Path) -> None:
    """Make from the simulated datasets what a user's own folders look like."""
    import cv2

    truth, names = world / "pannuke" / "truth", []
    for number, image in enumerate(sorted((truth / "he").rglob("*.png"))):
        names.append(f"t{number}")
        for role, source in (("images", "he"), ("instances", "instances"), ("types", "types")):
            target = world / "nuclei" / role / f"t{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(truth / source / image.relative_to(truth / "he"), target)
    splits = ["train", "train", "train", "val", "test", "test"]
    _table(world / "nuclei" / "tiles.csv", ["name", "split", "um_per_px", "tissue"],
           [[name, split, "0.25", "Breast"] for name, split in zip(names, splits, strict=True)])  # fmt: skip
    for letter, folder in (("A", "IHC"), ("B", "HE")):
        for number, image in enumerate(sorted((world / "bci" / folder / "train").glob("*.png"))):
            split = "train" if number < 2 else "val" if number < 3 else "test"
            target = world / "unpaired" / f"{split}{letter}" / f"u{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(image, target)
    rows = []
    for number in range(3):
        image = cv2.imread(str(world / "endonuke" / "dataset" / "images" / f"{number}.png"))[:64, :64]
        for folder in ("tiles", "points/images"):
            (world / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(world / folder / f"p{number}.png"), image)
        rows.append([f"p{number}", "0.5", f"case {number}"])
        label = next((world / "endonuke" / "dataset" / "labels").rglob(f"{number}.txt")).read_text().split("\n")
        points = [line.split() for line in label if line]
        kinds = ("stroma", "epithelium", "other")
        _table(world / "points" / "points" / f"p{number}.csv", ["x", "y", "class"],
               [[x, y, kinds[int(k)]] for x, y, k in points if int(x) < 64 and int(y) < 64])  # fmt: skip
    for folder in ("tiles", "points"):
        _table(world / folder / "tiles.csv", ["name", "um_per_px", "case"], rows)
    (world / "target").mkdir()
    for number, image in enumerate(sorted((world / "bci" / "HE" / "train").glob("*.png"))[:2]):
        shutil.copy2(image, world / "target" / f"h{number}.png")


def _table(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def _models(world: Path) -> None:
    """Train both models for a step, and keep their checkpoints, bundles and stores."""
    import torch

    for name, scenario, store in (("cyclegan", "CycleGAN, fit", "store"), ("hovernet", "HoVer-Net, fit", "nstore")):
        home = world / name

        def fit(home: Path = home, scenario: str = scenario) -> None:
            from ihc2he import train

            os.chdir(home)
            sys.argv = ["ihc2he", *SCENARIOS[scenario].arguments]
            train.main()

        home.mkdir()
        for folder in SCENARIOS[scenario].files:
            (home / folder).symlink_to(world / folder)
        in_child(fit)
        run = home / "out" / "run"
        shutil.copy2(run / "checkpoints" / "last.ckpt", world / f"{name}.ckpt")
        for bundle in (run / "bundles").iterdir():
            shutil.copytree(bundle, world / bundle.name)
        shutil.copytree(home / "store", world / store)
        shutil.rmtree(home)
    shutil.copytree(world / "g_ihc2he", world / "second")
    state = torch.load(world / "hovernet.ckpt", weights_only=True)["state_dict"]
    # As the authors' files spell the keys: no prefix for the encoder, '/' in the names of normalisation.
    own = {key.removeprefix("network.").removeprefix("encoder."): value for key, value in state.items()}
    torch.save({"desc": own}, world / "official.tar")
