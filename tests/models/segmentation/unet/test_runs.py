"""A whole run of the light network through the command line, on simulated tissue."""

import json

from ihc2he.models.segmentation.loading import load_segmenter


def test_the_smoke_run_leaves_a_small_bundle_of_averaged_weights(cli, tmp_path):
    done = cli("experiment=smoke/nuclei_lite")
    assert done.status == 0, done.err
    (run,) = (tmp_path / "outputs" / "smoke" / "nuclei_lite").iterdir()
    for name in ("report.html", "results.csv", "metrics.csv", "checkpoints/last.ckpt"):
        assert (run / name).exists(), name
    loaded = load_segmenter(str(run / "bundles" / "segmenter"))
    assert (loaded.mpp, loaded.classes[0], len(loaded.classes)) == (0.5, "neoplastic", 5)
    n = sum(value.numel() for value in loaded.network.state_dict().values())
    assert (run / "bundles" / "segmenter" / "model.safetensors").stat().st_size < 2.1 * n + 50_000
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
