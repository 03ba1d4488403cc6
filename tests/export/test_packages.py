import numpy as np
import pytest
import torch
import yaml

from ihc2he.errors import ConfigError, DataError
from ihc2he.export.__main__ import main
from ihc2he.export.packages import DARKEST, export, load, sample_tile, stretched
from ihc2he.models.bundle import load_bundle, save_bundle

GENERATOR = {
    "_target_": "ihc2he.models.translation.cyclegan.networks.ResnetGenerator",
    "width": 4,
    "n_blocks": 1,
}
CLASSES = ["unknown", "epithelial", "inflammatory", "spindle", "miscellaneous"]


@pytest.fixture(scope="module")
def package(qupath):
    return torch.jit.load(qupath / "instanseg.pt")


@pytest.fixture
def translator(tmp_path):
    from ihc2he.build import build

    info = {
        "module": GENERATOR, "role": "translator", "stain_in": "IHC", "stain_out": "H&E", "mpp": 0.46,
        "value_range": [-1.0, 1.0],
    }  # fmt: skip
    torch.manual_seed(0)
    return save_bundle(build(GENERATOR, torch.nn.Module), tmp_path / "g_ihc2he", info)


def test_qupath_finds_in_the_description_what_it_looks_for(qupath):
    described = yaml.safe_load((qupath / "rdf.yaml").read_text())
    (given,) = described["inputs"]
    labels, rows = described["outputs"]
    assert described["type"] == "model"
    assert tuple(map(int, described["format_version"].split("."))) > (0, 5, 0)  # else pixel sizes are read elsewhere
    assert [axis["type"] for axis in given["axes"]] == ["batch", "channel", "space", "space"]
    assert {axis["id"]: (axis["scale"], axis["unit"]) for axis in labels["axes"][2:]} == {
        "y": (0.5, "micrometer"), "x": (0.5, "micrometer"),
    }  # fmt: skip
    assert labels["id"] == "instance_segmentation"
    assert labels["axes"][1]["channel_names"] == ["nuclei"]
    assert rows["id"] == "detection_classes"
    assert rows["data"]["values"] == CLASSES
    scaling = {step["id"]: step["kwargs"] for step in given["preprocessing"]}["scale_range"]
    assert (scaling["min_percentile"], scaling["max_percentile"]) == (0.1, 99.9)
    assert described["weights"]["torchscript"]["source"] == "instanseg.pt"


def test_the_package_is_one_of_the_model_zoo(qupath):
    from bioimageio.spec import InvalidDescr, load_description

    described = load_description(qupath)
    assert not isinstance(described, InvalidDescr), described.validation_summary.format()


def test_a_package_gives_what_its_sample_says(qupath, package):
    sample = np.load(qupath / "test_input.npy")
    labels, rows = package(stretched(sample[0].astype(np.uint8).transpose(1, 2, 0)))
    assert np.array_equal(labels, np.load(qupath / "test_instance_segmentation.npy"))
    assert np.array_equal(rows, np.load(qupath / "test_detection_classes.npy"))
    assert labels.max() == len(rows) > 10


def test_labels_and_rows_have_the_form_that_qupath_reads(package):
    image = sample_tile(0.5)[:131, :77]
    labels, rows = package(stretched(image), {"target_segmentation": torch.tensor([1, 1])})
    assert labels.shape == (1, 1, 131, 77)
    assert labels.dtype == torch.float32
    assert torch.equal(labels.unique(), torch.arange(int(labels.max()) + 1).float())
    assert rows.shape == (int(labels.max()), 1)
    assert rows.dtype == torch.uint8
    assert int(rows.max()) < len(CLASSES)


def test_an_empty_field_has_no_nucleus_and_two_rows(package):
    labels, rows = package(torch.ones(1, 3, 64, 64))
    assert labels.max() == 0
    assert rows.tolist() == [[0], [0]]


def test_a_package_finds_the_nuclei_of_the_bundle(package):
    model = load("builtin", "", None)
    image = sample_tile(0.5)
    with torch.no_grad():
        maps_khw = model.module((stretched(image) * (1 - DARKEST) + DARKEST).clamp(0, 1))[0]
    found = model.decoder.find(model.decoder.reduced(maps_khw[None])[0].numpy(), 0.5).nuclei
    labels_hw = package(stretched(image))[0][0, 0].numpy()
    assert len(np.unique(np.stack([labels_hw.ravel(), found.inst_hw.ravel()]), axis=1).T) == found.inst_hw.max() + 1


def test_a_translator_as_onnx_and_for_the_model_zoo(translator, tmp_path):
    import onnxruntime
    from bioimageio.spec import InvalidDescr, load_description

    folder, file = export(translator, tmp_path / "out", ["bioimageio", "onnx"], author="A. Author", licence="CC0-1.0")
    described = load_description(folder)
    assert not isinstance(described, InvalidDescr), described.validation_summary.format()
    assert [str(author.name) for author in described.authors] == ["A. Author"]
    sample = np.load(folder / "test_input.npy") / 255
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"image": sample.astype(np.float32)})
    with torch.no_grad():
        wanted = load_bundle(translator)[0](torch.from_numpy(sample).float() * 2 - 1) / 2 + 0.5
    assert np.abs(made - wanted.numpy()).max() * 255 < 0.1  # grey levels
    assert np.allclose(np.load(folder / "test_result.npy"), wanted, atol=1e-4)


@pytest.mark.slow
def test_a_program_of_torch_export_runs_without_this_package(translator, tmp_path):
    (file,) = export(translator, tmp_path / "out", ["torch"])
    x_bchw = torch.rand(1, 3, 68, 92)
    with torch.no_grad():
        made = torch.export.load(file).module()(x_bchw)
        assert torch.allclose(made, load_bundle(translator)[0](2 * x_bchw - 1) / 2 + 0.5, atol=1e-5)


def test_what_cannot_be_exported_is_refused(translator, tmp_path):
    with pytest.raises(ConfigError, match="has a translator"):
        export(translator, tmp_path / "out", ["qupath"])
    with pytest.raises(ConfigError, match=r"no 'onx'.*Did you mean 'onnx'"):
        export(translator, tmp_path / "out", ["onx"])
    with pytest.raises(DataError, match="expected the folder of a bundle"):
        export("./nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_is_wrong(capsys):
    assert main(["builtin", "out=x", "format=onnx"]) == 2
    assert "There is no key 'format'. Did you mean 'formats'?" in capsys.readouterr().err
    assert main(["builtin"]) == 2
    assert "Expected one bundle and out=FOLDER" in capsys.readouterr().err
