"""What the report of a training says first."""

import json
import re

import pytest

from ihc2he.files import write_csv
from ihc2he.report.page import write_report


def write_training(run_dir, status="finished", losses=(3.0, 2.0, 1.0), tested=1, mode="max"):
    (run_dir / "config.yaml").write_text(
        "model: {_target_: ihc2he.models.CycleGAN}\ndata: {_target_: ihc2he.data.bci.BCIDataModule, simulate: {n: 1}}\n"
        f"trainer: {{max_epochs: 5}}\ncallbacks: {{best: {{monitor: val/he/ssim, mode: {mode}}}}}\n"
    )
    facts = {"status": status, "seconds": {"fit": 5412.25}, "device": "cuda:0"}
    (run_dir / "run.json").write_text(json.dumps(facts))
    values = zip(losses, (0.5, 0.7, 0.6), strict=True)
    rows = [
        {"epoch": i, "step": 10 * i, "train/loss_g": loss, "val/he/ssim": ssim} for i, (loss, ssim) in enumerate(values)
    ]
    write_csv(run_dir / "metrics.csv", rows)
    row = {"metric": "he/ssim", "group": "", "value": 0.65, "n": 12, "better": "higher", "protocol": ""}
    row |= {"checkpoint": "c", "epoch": tested, "step": 20}
    if tested is not None:
        write_csv(run_dir / "test.csv", [row | {"metric": "he/psnr"}, row])


def answer_of(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    said = re.search(r'<div class="answer">(.*?)</div>', page, re.DOTALL)[1]
    return re.findall("<p>(.*?)</p>", said, re.DOTALL)


def test_a_training_opens_with_what_came_out(tmp_path):
    write_training(tmp_path)
    assert answer_of(tmp_path) == [
        "A CycleGAN on BCI (simulated) was trained for 3 of 5 epochs in 1.5 h on cuda:0: he/ssim 0.6500 on 12 test "
        "images, higher is better.",
        "The best epoch was 1 (from 0), with val/he/ssim 0.7000 in the validation; the last one had 0.6000. Its "
        "weights were tested. As the validation chose them, trust the value of the test.",
    ]


def test_the_time_of_a_training_that_was_continued_is_that_of_its_last_part(tmp_path):
    write_training(tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(facts | {"earlier": [{"status": "interrupted"}]}))
    assert "for 3 of 5 epochs, the last part in 1.5 h on cuda:0: he/ssim" in answer_of(tmp_path)[0]


def test_a_training_says_if_other_weights_were_tested_or_none(tmp_path):
    write_training(tmp_path, tested=2)
    assert answer_of(tmp_path)[1].endswith("the last one had 0.6000. Tested were those of epoch 2.")
    (tmp_path / "test.csv").unlink()
    write_training(tmp_path, tested=None, mode="min")
    first, second = answer_of(tmp_path)
    assert first.endswith("in 1.5 h on cuda:0.")
    assert (
        second == "The best epoch was 0 (from 0), with val/he/ssim 0.5000 in the validation; the last one had 0.6000."
    )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("interrupted", "This run was interrupted"), ("running", "This run has not ended, or was killed"),
        ("DataError: no <tiles>", "This run failed: DataError: no &lt;tiles&gt;"),
        ("TrainingDivergedError: The loss became NaN", "This run failed: TrainingDivergedError: The loss became NaN"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_complete_says_so_first(status, said, tmp_path):
    write_training(tmp_path, status)
    first, second, *_ = answer_of(tmp_path)
    assert first.startswith(said)
    assert second.startswith("A CycleGAN on BCI")


def test_a_training_that_diverged_says_so(tmp_path):
    write_training(tmp_path, losses=(3.0, 2.0, float("nan")))
    assert "Training diverged: train/loss_g was not finite at the end." in answer_of(tmp_path)


def test_what_cannot_be_summed_up_is_said(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    assert answer_of(tmp_path)[0].startswith("What came out could not be summed up: ")
