"""Scores of tiles from sources with and without types."""

import numpy as np
import pytest
import torch

from ihc2he.models.segmentation.evaluation import SegmentationEvaluation, Truth
from ihc2he.nuclei.decoders.base import Found, Nuclei
from ihc2he.nuclei.instances import centroids

CPU = torch.device("cpu")


def nuclei(*types):
    """Squares in a row, one of each given type; 0 = not known."""
    inst_hw = np.zeros((16, 16 * len(types)), np.int32)
    for i in range(len(types)):
        inst_hw[4:12, 16 * i + 4 : 16 * i + 12] = i + 1
    return Nuclei(inst_hw, np.array(types), np.ones(len(types), np.float32))


def tile(true, found):
    nuclei_found = nuclei(*found)
    centres = centroids(nuclei_found.inst_hw)
    truth = Truth("t", "", np.zeros((*nuclei_found.inst_hw.shape, 3), np.uint8), nuclei(*true))
    return truth, Found(nuclei_found, centres, np.ones(len(centres), np.float32))


def scores(*tiles):
    evaluation = SegmentationEvaluation(["round", "long"])
    for one in tiles:
        evaluation.update(*tile(*one), mpp=0.5)
    return {key: float(value) for key, value in evaluation.compute_and_reset(CPU).items()}


def test_a_tile_without_types_counts_for_finding_and_not_for_types():
    typed = ((1, 2, 2), (1, 2, 1))
    alone, both = scores(typed), scores(typed, ((0, 0), (1, 2)))
    for key in ("type_accuracy", "f1/round", "f1/long", "pq/round", "pq/long", "mpq_dataset"):
        assert both[key] == pytest.approx(alone[key]), key
    assert (both["f1"], both["bpq"]) == (1.0, 1.0)


def test_nuclei_without_a_type_beside_typed_ones_are_of_another_kind():
    assert scores(((1, 0), (1, 1)))["f1/round"] < 1
    assert scores(((1, 0), (1, 0)))["f1/round"] == 1


def test_without_any_types_there_are_no_scores_of_them():
    found = scores(((0, 0), (1, 2)))
    assert found["f1"] == 1
    assert np.isnan([found["f1/round"], found["type_accuracy"], found["mpq"]]).all()
