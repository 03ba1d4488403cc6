"""Networks of others as ONNX: what has to be said of them, and on which device they run."""

import json
from pathlib import Path

import pytest
import torch

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.pipeline.outside import Onnx
from ihc2he.models.pipeline.packages import OnnxSession

CENTRES = {"_target_": "ihc2he.nuclei.decoders.centres.CentresDecoder"}


@pytest.fixture
def identity_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, save

    image = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("image", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["same"])], "g", image[:1], image[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, tmp_path / "same.onnx")
    return str(tmp_path / "same.onnx")


def test_an_onnx_file_that_says_too_little_is_refused(tmp_path, identity_onnx):
    with pytest.raises(ConfigError, match="does not say its pixel size"):
        Onnx(identity_onnx)
    with pytest.raises(ConfigError, match=r"how to read its maps. Pass model\.segmenters\.onnx\.decoder"):
        Onnx(identity_onnx, mpp=0.5)
    with pytest.raises(DataError, match="gave 3 maps"):
        Onnx(identity_onnx, mpp=0.5, decoder=CENTRES)(torch.zeros(1, 3, 16, 16))
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(DataError, match=r"broken\.onnx: onnxruntime cannot read it"):
        Onnx(str(tmp_path / "broken.onnx"))
    with pytest.raises(ConfigError, match="weights is not given: expected an ONNX file"):
        Onnx(None)


def test_an_onnx_network_runs_on_the_gpu_of_its_images(identity_onnx, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    opened, real = [], ort.InferenceSession

    def record(content, providers):
        opened.append(providers)
        return real(content, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", record)
    session = OnnxSession(Path(identity_onnx).read_bytes(), "identity")
    session.place(torch.device("cuda", 1))
    for _ in range(2):
        session.run(torch.zeros(1, 3, 8, 8))
    gpu = ("CUDAExecutionProvider", {"device_id": 1})
    assert opened == [["CPUExecutionProvider"], [gpu, "CPUExecutionProvider"], ["CPUExecutionProvider"]]


def test_a_decoder_in_a_file_is_not_any_class(identity_onnx):
    import onnx

    model = onnx.load(identity_onnx)
    note = {"mpp": 0.5, "decoder": {"_target_": "subprocess.Popen", "args": ["true"]}}
    onnx.helper.set_model_props(model, {"ihc2he": json.dumps(note)})
    onnx.save(model, identity_onnx)
    with pytest.raises(ConfigError, match=r"'subprocess\.Popen' is none of"):
        Onnx(identity_onnx)
