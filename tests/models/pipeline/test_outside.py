"""What comes from outside: packages of others, and nuclei that another program has found."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ihc2he.datainfo import DataInfo
from ihc2he.errors import ConfigError, DataError
from ihc2he.images.source import ArraySource
from ihc2he.models.pipeline.blocks import colours
from ihc2he.models.pipeline.finding import find_labelled
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.outside import Detections, Package
from ihc2he.models.pipeline.processing import processed
from ihc2he.models.pipeline.segmenters import Classical
from ihc2he.models.pipeline.translators import Identity, Recolour
from ihc2he.nuclei.geojson import write_geojson
from ihc2he.nuclei.table import nuclei_table
from ihc2he.tiling.windows import Block, divide


class Labels(torch.nn.Module):
    """Calls quadrants of dark pixels nuclei, and says of each whether it is odd."""

    def __init__(self, row: bool):
        super().__init__()
        self.row = row

    def forward(self, x_bchw: torch.Tensor) -> list[torch.Tensor]:
        labels_hw = torch.arange(4, device=x_bchw.device).view(2, 2) + 1
        size = [x_bchw.shape[2] // 2, x_bchw.shape[3] // 2]
        labels_hw = labels_hw.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
        dark_hw = x_bchw[0].mean(0) < 0.5
        out = [(labels_hw * dark_hw)[None, None].float()]
        if self.row:
            out.append(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.2, 0.8]]))
        return out


def axes(size, unit="micrometer", channels=("r", "g", "b")):
    sides = [{"type": "space", "id": name, "size": size, "scale": 0.5, "unit": unit} for name in "yx"]
    return [{"type": "batch", "size": 1}, {"type": "channel", "channel_names": list(channels)}, *sides]


STRETCH = {"id": "scale_range", "kwargs": {"min_percentile": 0, "max_percentile": 100, "axes": ["x", "y"]}}


@pytest.fixture
def package(tmp_path):
    """Return `package(row, weights, **changes)`, which writes one of labels and returns its folder."""

    def write(row=True, name="labels", **changes):
        folder = tmp_path / name
        folder.mkdir()
        torch.jit.save(torch.jit.script(Labels(row)), folder / "instanseg.pt")
        outputs = [{"id": "instance_segmentation", "axes": axes({"tensor_id": "raw"}, channels=["nuclei"])}]
        if row:
            outputs.append({"id": "detection_logits", "axes": [], "data": {"values": ["even", "odd"]}})
        said = {
            "type": "model", "format_version": "0.5.3", "outputs": outputs,
            "inputs": [{"id": "raw", "axes": axes({"min": 8, "step": 8}), "preprocessing": [STRETCH]}],
            "weights": {"torchscript": {"source": "instanseg.pt"}},
        }  # fmt: skip
        (folder / "rdf.yaml").write_text(yaml.safe_dump(said | changes))
        return folder

    return write


def halves(height=16, width=16):
    """Return an image whose left half is dark grey and whose right half is not."""
    x_bchw = torch.full((1, 3, height, width), 0.6)
    x_bchw[..., : width // 2] = 0.5
    return x_bchw


# ------------------------------------------------------------------ packages


def test_torchscript_is_not_touched_without_trust(package, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"TorchScript, a program .*model\.segmenters\.package\.trust=true"):
        Package(str(package()))


def test_labels_and_classes_of_a_package_after_its_own_preprocessing(package):
    segmenter = Package(str(package()), trust=True)
    assert (segmenter.mpp, segmenter.classes) == (0.5, ["even", "odd"])
    maps_khw = segmenter(halves())[0].numpy()
    found = find_labelled(maps_khw, 0.5)
    assert found.nuclei.types_n.tolist() == [1, 1]  # only of the left half, which stretching makes dark
    assert found.centres_n2.tolist() == [[3.5, 3.5], [3.5, 11.5]]
    assert found.nuclei.inst_hw[:, 8:].max() == 0


def test_images_of_any_size_have_labels_of_theirs(package):
    assert Package(str(package(row=False)), trust=True)(halves(13, 27)).shape == (1, 1, 13, 27)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([torch.zeros(1, 1, 8, 8), torch.zeros(0, 1)], r"gave labels of \(8, 8\) px for \(16, 16\)"),
        ([torch.ones(1, 1, 16, 16), -torch.ones(1, 1)], "a class that is none of its 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(package, outputs, message):
    segmenter = Package(str(package()), trust=True)
    segmenter.package = replace(segmenter.package, run=lambda _: outputs)
    with pytest.raises(DataError, match=message):
        segmenter(halves())


def test_another_description_makes_other_results(package):
    first, second = (Package(str(package(name=name, note=name)), trust=True).facts() for name in ("a", "b"))
    assert first["rdf"] != second["rdf"]


def test_one_side_may_be_said_to_be_as_the_other(package):
    sides = axes({"min": 16, "step": 4})
    sides[3]["size"] = {"tensor_id": "raw", "axis_id": "y"}
    side = Package(str(package(inputs=[{"axes": sides}])), trust=True).package.side
    assert [side.next(length) for length in (3, 16, 17, 24)] == [16, 16, 20, 24]


def test_percentiles_are_of_the_whole_image(package):
    segmenter = Package(str(package()), trust=True)
    alone = halves()[..., :8]
    assert segmenter(alone)[0, 0].max() > 0  # one colour: the darkest there is
    whole = torch.cat([halves(), torch.full((1, 3, 16, 16), 0.1)], 3).reshape(1, 3, -1, 1)
    assert segmenter.prepare("a", lambda: whole) is whole
    assert segmenter.prepare("a", None) is None
    assert segmenter(alone, 0, [whole])[0, 0].max() == 0


def test_colours_of_a_whole_image_are_those_after_translation():
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal((150, 110, 140), 12, (300, 260, 3)), 0, 255).astype(np.uint8)
    source = ArraySource(image, 0.5)
    plain = colours(Identity(), source, 0.5, None)
    assert torch.equal(plain[0, :, :, 0].T, torch.from_numpy(image).reshape(-1, 3).float() / 255)
    translator = Recolour(1.7, 0.2, 0.22, 1.0)
    state = translator.prepare(source)
    made = colours(translator, source, 0.5, state)
    expected = translator(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, 0, [state])
    assert made.mean((0, 2, 3)) == pytest.approx(expected.mean((0, 2, 3)), abs=0.01)


@pytest.mark.parametrize("top", ["", "labels/"])
def test_a_zip_file_is_a_package_too(package, tmp_path, top):
    folder = package()
    with zipfile.ZipFile(tmp_path / "labels.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"{top}{file.name}")
    assert torch.equal(
        Package(str(tmp_path / "labels.zip"), trust=True)(halves()), Package(str(folder), trust=True)(halves())
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": {"torchscript": {"source": "../labels/instanseg.pt"}}}, DataError, "lies outside of the package"),
        ({"weights": {"torchscript": {"source": "/etc/passwd"}}}, DataError, "lies outside of the package"),
        ({"weights": {"torchscript": {"source": "https://a.b/c.pt"}}}, DataError, "Download the whole package"),
        ({"weights": {"torchscript": {"source": "other.pt"}}}, DataError, r"'other\.pt' cannot be read"),
        ({"weights": {"torchscript": {"source": "rdf.yaml"}}}, DataError, "is not TorchScript"),
        ({"weights": {"torchscript": {"source": "instanseg.pt", "sha256": "0"}}}, DataError, "by its sha256"),
        ({"weights": {"pytorch_state_dict": {"source": "a.pt"}}}, ConfigError, "expected onnx or torchscript"),
        ({"format_version": "0.4.10"}, DataError, r"model of format 0\.4\.10, expected a model of format 0\.5"),
        ({"inputs": []}, ConfigError, "has 0 inputs"),
        ({"inputs": [{"axes": axes(8, unit="pixel")}]}, DataError, "does not say the pixel size"),
        ({"inputs": [{"axes": axes(8)}]}, ConfigError, "labels of images of 8 px only"),
        ({"inputs": [{"axes": axes({"min": 8})}]}, DataError, "rdf.yaml does not describe a model.*'step'"),
        (
            {"inputs": [{"axes": axes(8), "preprocessing": [{"id": "binarize"}]}]},
            ConfigError, "a step 'binarize', which is not known",
        ),
        (
            {"inputs": [{"axes": axes(8), "preprocessing": [{"id": "clip", "kwargs": {"max_percentile": 9}}]}]},
            ConfigError, "'clip' has max_percentile",
        ),
        (
            {"outputs": [{"id": "maps", "axes": axes(8), "postprocessing": [STRETCH]}]},
            ConfigError, "'scale_range' after the network, which would differ from window to window",
        ),
    ],
)  # fmt: skip
def test_a_package_that_cannot_be_used_is_named_with_the_reason(package, changes, error, message):
    folder = package(**changes)
    with pytest.raises(error, match=f"{folder}.*{message}"):
        Package(str(folder), trust=True)


def test_a_link_out_of_a_package_is_not_followed(package, tmp_path):
    folder = package()
    (folder / "instanseg.pt").rename(tmp_path / "elsewhere.pt")
    (folder / "instanseg.pt").symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(DataError, match="is a link to outside"):
        Package(str(folder), trust=True)


def test_what_is_no_map_of_labels_needs_a_decoder(package):
    shares = package(row=False, name="shares")
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), halves()), shares / "instanseg.pt")
    with pytest.raises(DataError, match="'instance_segmentation' has values that are no labels"):
        Package(str(shares), trust=True)(halves() + 0.01 * torch.rand(1, 3, 16, 16))
    many = {"id": "maps", "axes": axes({"min": 8, "step": 8})}
    with pytest.raises(ConfigError, match=r"'maps' has 3 channels .*package\.decoder=\{_target_: DECODER\}"):
        Package(str(package(row=False, name="many", outputs=[many])), trust=True)


def test_finished_nuclei_are_not_averaged_over_views(package):
    use = {"translators": ["none"], "segmenters": ["package"]}
    with pytest.raises(ConfigError, match=r"model\.segmenters\.package gives finished nuclei"):
        Pipeline({"none": Identity()}, {"package": Package(str(package()), trust=True)}, use, tta=True)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"id": "scale_linear", "kwargs": {"gain": [2, 1, 1], "offset": 1, "axis": "channel"}},
         [[1, 9], [3, 5], [1, 1]]),
        ({"id": "clip", "kwargs": {"min": 1, "max": "3"}}, [[1, 3], [2, 3], [1, 1]]),
        ({"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x", "y"], "eps": 1}},
         [[-2 / 3, 2 / 3], [-0.5, 0.5], [0, 0]]),
        (
            {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": [1, 2, 3], "std": [1, 2, 1], "axis": "channel"}},
            [[-1, 3], [0, 1], [-3, -3]],
        ),
        ({"id": "scale_range", "kwargs": {"axes": ["channel", "y", "x"], "eps": "1e-12"}}, [[0, 1], [0.5, 1], [0, 0]]),
    ],
)  # fmt: skip
def test_steps_do_what_the_specification_says(step, expected):
    x_bchw = torch.tensor([[0.0, 4.0], [2.0, 4.0], [0.0, 0.0]]).view(1, 3, 1, 2)
    assert processed([step], x_bchw).view(3, 2).flatten().tolist() == pytest.approx(
        np.ravel(expected).tolist(), abs=1e-5
    )


# ------------------------------------------------------------------ nuclei of another program


@pytest.fixture
def detected(tmp_path):
    """Write two nuclei of image `slide/a`, 40 x 30 px, and return the folder and their map."""
    inst_hw = np.zeros((40, 30), np.int32)
    inst_hw[2:6, 3:9], inst_hw[20:31, 10:15] = 1, 2
    (tmp_path / "found" / "slide").mkdir(parents=True)
    table = nuclei_table(inst_hw, np.array([2, 1]), mpp=0.5)
    write_geojson(tmp_path / "found" / "slide" / "a.geojson.gz", table, ["round", "long"])
    return tmp_path / "found", inst_hw


def test_nuclei_of_a_file_keep_their_pixels_and_types_in_every_block(detected):
    folder, inst_hw = detected
    segmenter = Detections(str(folder), ["round", "long"])
    state = segmenter.prepare("slide/a", None)
    whole = Block(slice(0, 40), slice(0, 30), (0, 40), (0, 30))
    for block in [whole, *divide(40, 30, 24, 8)]:
        shape = (1, 3, block.rows.stop - block.rows.start, block.columns.stop - block.columns.start)
        maps = segmenter(torch.rand(shape), 0, [segmenter.of_block(state, block)])[0].numpy()
        own_hw = inst_hw[block.rows, block.columns]
        found = find_labelled(maps, float("nan"))
        assert np.array_equal(found.nuclei.inst_hw > 0, own_hw > 0)
        assert found.nuclei.types_n.tolist() == [3 - number for number in np.unique(own_hw[own_hw > 0])]
    untyped = Detections(str(folder))
    assert untyped.of_block(untyped.prepare("slide/a", None), whole).types_n.tolist() == [0, 0]
    maps = segmenter(torch.rand(1, 3, 40, 30), 0, [segmenter.of_block(state, whole)])[0].numpy()
    assert find_labelled(maps, 0.5).centres_n2[0].tolist() == [5.5, 3.5]


def test_annotations_around_detections_are_no_nuclei(detected):
    folder, _ = detected
    square = [[[0, 0], [30, 0], [30, 40], [0, 40], [0, 0]]]
    region = {"geometry": {"type": "Polygon", "coordinates": square}, "properties": {"objectType": "annotation"}}
    nucleus = {
        "geometry": {"type": "Polygon", "coordinates": [[[1, 1], [4, 1], [4, 4], [1, 4]]]},
        "properties": {"objectType": "detection"},
    }
    (folder / "b.geojson").write_text(json.dumps([nucleus, region]))
    assert len(Detections(str(folder)).prepare("b", None).types_n) == 1
    (folder / "b.geojson").write_text(json.dumps([region]))
    assert len(Detections(str(folder)).prepare("b", None).types_n) == 1


def test_an_image_without_a_file_is_an_error_and_not_without_nuclei(detected):
    folder, _ = detected
    segmenter = Detections(str(folder), ["round"])
    with pytest.raises(DataError, match=r"The image b has no file.*b\.geojson or b\.geojson\.gz"):
        segmenter.prepare("b", None)
    (folder / "slide" / "a.geojson").write_text("[]")
    with pytest.raises(DataError, match="two files, of which one has to go"):
        segmenter.prepare("slide/a", None)
    (folder / "slide" / "a.geojson").unlink()
    with pytest.raises(DataError, match="classified as 'long', which is none of the classes"):
        segmenter.prepare("slide/a", None)
    with pytest.raises(ConfigError, match=r"model\.segmenters\.geojson\.path=.*no such folder"):
        Detections(str(folder / "nowhere"))


def test_other_files_make_other_results(detected):
    folder, _ = detected
    first = Detections(str(folder)).facts()
    (folder / "c.geojson").write_text("[]")
    assert Detections(str(folder)).facts() != first


class OneTile(LightningDataModule):
    def __init__(self, tile):
        super().__init__()
        self.tile, self.info = tile, DataInfo(mpp=None, classes=["stroma", "epithelium"])

    def test_dataloader(self):
        return DataLoader([self.tile], collate_fn=lambda items: {key: [items[0][key]] for key in items[0]})


def test_nuclei_of_others_stand_beside_methods_that_translate(detected, trainer):
    folder, inst_hw = detected
    image = np.full((40, 30, 3), 235, np.uint8)
    image[inst_hw > 0] = (90, 70, 140)
    segmenters = {"classical": Classical(), "geojson": Detections(str(folder), ["round", "long"])}
    translators = {"none": Identity(), "recolour": Recolour(1.7, 0.2, 0.22, 1.0)}
    use = {"translators": [*translators], "segmenters": [*segmenters]}
    options = {"workers": 0, "resamples": 10, "radii_um": [3], "against": ["none+classical"]}
    module = Pipeline(translators, segmenters, use, class_map={"round": "stroma", "long": "epithelium"}, **options)
    assert module.methods == ["none+classical", "none+geojson", "recolour+classical"]
    points_n3 = np.array([[5, 3, 1], [12, 25, 0]])
    tile = {
        "name": "slide/a",
        "group": "",
        "image": image,
        "mpp": 0.5,
        "points": points_n3,
        "readers": {"a": points_n3},
    }
    runner = trainer()
    runner.test(module, datamodule=OneTile(tile), verbose=False)
    assert runner.callback_metrics["test/f1/none+geojson"] == 1
    assert runner.callback_metrics["test/f1_macro/none+geojson"] == 1
    with pytest.raises(ConfigError, match=r"add none to model\.use\.translators"):
        Pipeline(translators, segmenters, {"translators": ["recolour"], "segmenters": ["geojson"]})
