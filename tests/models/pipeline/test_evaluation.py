"""The comparison of methods: as the functions of `ihc2he.metrics` say, and as worked out by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ihc2he.errors import ConfigError
from ihc2he.metrics.average_precision import average_precisions
from ihc2he.metrics.bootstrap import differences, draw, intervals
from ihc2he.metrics.keypoints import score_tile, scores, tabulate
from ihc2he.models.pipeline.assembly import TileNuclei
from ihc2he.models.pipeline.evaluation import MethodComparison, summary
from ihc2he.models.pipeline.method import Method
from ihc2he.models.pipeline.types import type_map
from ihc2he.stain.deconvolution import DAB

CLASSES = ["stroma", "epithelium", "other"]
TYPES = ["round", "long"]
CLASS_MAP = {"round": "epithelium", "long": "stroma"}
MPP, SIDE = 0.5, 64
RADII = [1, 3, 6]


def found(centres, types, scores_n=None):
    """Return nuclei of 3x3 px at these places."""
    inst_hw = np.zeros((SIDE, SIDE), np.int32)
    for number, (x, y) in enumerate(centres, 1):
        inst_hw[y - 1 : y + 2, x - 1 : x + 2] = number
    n = len(centres)
    sure_n = np.linspace(0.9, 0.5, n) if scores_n is None else np.asarray(scores_n)
    centres_n2 = np.reshape(centres, (n, 2)).astype(float)
    shares_n = np.ones(n, np.float32)
    return TileNuclei(inst_hw, np.asarray(types, np.int64), shares_n, sure_n.astype(np.float32), None, centres_n2)


def tile(name, points, group="", **more):
    points_n3 = np.reshape(points, (-1, 3)).astype(np.int64)
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    return {
        "name": name, "group": group, "image": image, "mpp": MPP, "points": points_n3, "readers": {"a": points_n3},
    } | more  # fmt: skip


SETTINGS = {
    "types": {Method("none", "typed"): TYPES, Method("mine", "typed"): TYPES},
    "roles": {"none": "none", "mine": "translation", "rendered": "ceiling"}, "classes": CLASSES, "class_map": CLASS_MAP,
    "truth_classes": [], "radius_um": 3.0, "radii_um": RADII, "ap_map": {}, "resamples": 50, "seed": 0,
}  # fmt: skip


def evaluation(**changes):
    return MethodComparison(**(SETTINGS | changes))


IMAGE = np.full((SIDE, SIDE, 3), 180, np.uint8)


def brown_tile(name, points, dab_n):
    """Return a tile of glass with a disc of this much DAB around each keypoint."""
    made = tile(name, points)
    y_hw, x_hw = np.mgrid[:SIDE, :SIDE]
    od_hw = sum(dab * (np.hypot(x_hw - x, y_hw - y) <= 5) for (x, y, _), dab in zip(points, dab_n, strict=True))
    vector_c = np.array(DAB) / np.linalg.norm(DAB)
    made["image"] = (255 * 10 ** -(od_hw[..., None] * vector_c)).round().astype(np.uint8)
    return made


def random_tiles(n=6, seed=0):
    """Return tiles and what two methods found on each: the second finds more, with fewer errors of type."""
    rng = np.random.default_rng(seed)
    entries = []
    for i in range(n):
        places = np.array([(x, y) for x in range(6, 60, 12) for y in range(6, 60, 12)])
        places = places[rng.permutation(len(places))[: rng.integers(4, 20)]]
        kinds = rng.integers(0, 2, len(places))
        methods = {}
        for method, share in (("none+typed", 0.5), ("mine+typed", 0.8)):
            seen = rng.random(len(places)) < share
            moved = places[seen] + rng.integers(-5, 6, (seen.sum(), 2))
            types = np.where(rng.random(seen.sum()) < share, 2 - kinds[seen], 1 + kinds[seen])
            methods[method] = (IMAGE, found(moved, types, rng.random(seen.sum())))
        entries.append((tile(f"t{i}", np.column_stack([places, kinds]), f"g{i // 2}"), methods))
    return entries


def judged(entries, **changes):
    judge = evaluation(**changes)
    scored = [judge.update(*entry) for entry in entries]
    return judge, scored, *judge.compute_and_reset()


# ------------------------------------------------------------------ types and classes


def test_types_become_classes_by_name():
    mapped = type_map("s", ["long", "round"], CLASS_MAP, CLASSES)
    assert mapped.class_k.tolist() == [-1, 0, 1]
    assert mapped.apply(found([(5, 5), (9, 9), (20, 20)], [0, 1, 2])).types_n.tolist() == [0, 1, 2]
    assert type_map("s", ["long", "round"], CLASS_MAP).classes == ["epithelium", "stroma"]


def test_a_type_may_be_of_no_class():
    mapped = type_map("s", TYPES, {"round": "epithelium", "long": None}, CLASSES)
    assert mapped.class_k.tolist() == [-1, 1, -1]
    assert type_map("s", TYPES, {"round": "epithelium", "long": None}).classes == ["epithelium"]


def test_without_a_map_types_keep_their_names_and_say_nothing_about_keypoints():
    assert type_map("s", TYPES, None) == (pytest.approx([-1, 0, 1]), TYPES)
    assert type_map("s", TYPES, None, CLASSES).class_k.tolist() == [-1, -1, -1]
    assert type_map("s", [], None).apply(found([(5, 5)], [0])).types_n.tolist() == [0]


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"round": "epithelium"}, r"no class for 'long', a type of the segmenter 's'.*\+model\.class_map\.long=CLASS"),
        ({"round": "epitelium", "long": "stroma"}, "round=epitelium: no such class. Did you mean 'epithelium'"),
    ],
)
def test_types_without_a_class_and_unknown_classes_are_errors(class_map, message):
    with pytest.raises(ConfigError, match=message):
        type_map("s", TYPES, class_map, CLASSES)


def test_a_class_that_average_precision_cannot_count_as_another():
    with pytest.raises(ConfigError, match=r"ap_map\.other=stroma: .*no such class.*~model\.ap_map\.other"):
        evaluation(classes=["epithelium", "other"], class_map=None, ap_map={"other": "stroma"})
    assert evaluation(ap_map={"other": "stroma"}).ap_of == [0, 1, 0]


# ------------------------------------------------------------------ values


def test_values_are_those_of_the_metrics_on_the_same_tiles():
    entries = random_tiles()
    judge, scored, values, tables = judged(entries)
    over_tiles = draw({entry["name"]: entry["name"] for entry, _ in entries}, 50, 0)
    counts = {}
    for method in ("none+typed", "mine+typed"):
        own = {}
        for entry, methods in entries:
            nuclei = methods[method][1]
            kinds = np.array([-1, 1, 0])[nuclei.types_n]
            own[entry["name"]] = score_tile(
                entry["points"][:, :2], entry["points"][:, 2], nuclei.centres_n2, kinds,
                mpp=MPP, n_classes=3, radii_um=RADII, inst_hw=nuclei.inst_hw, scores_p=nuclei.scores_n,
            )  # fmt: skip
        counts[method] = tabulate(own)
        expected = {key: float(value) for key, value in scores(counts[method].total(), CLASSES, RADII).items()}
        expected |= average_precisions([score.ranked for score in own.values()], CLASSES)
        expected["recall_pale"] = expected["recall"]  # on an even grey all keypoints are equally pale
        got = {key.rpartition("/")[0]: value for key, value in values.items() if key.endswith(method)}
        stains = {"hematoxylin_correlation", "nuclear_correlation", "dab_ratio"}
        assert {k: v for k, v in got.items() if k not in stains} == pytest.approx(expected, nan_ok=True)
        by_metric = {row["metric"]: row for row in tables["comparison.csv"] if row["method"] == method}
        low_high = intervals(counts[method], lambda sums: scores(sums, CLASSES, RADII), over_tiles)["f1"]
        assert (by_metric["f1"]["value"], by_metric["f1"]["low"], by_metric["f1"]["high"]) == low_high
        assert all(row["protocol"] and row["better"] and row["n"] == len(entries) for row in by_metric.values())
        assert set(got) <= set(judge.cards)
    assert values["f1/mine+typed"] > values["f1/none+typed"]
    shown = next(row for row in tables["differences.csv"] if row["metric"] == "f1_macro")
    assert (shown["method"], shown["against"]) == ("mine+typed", "none+typed")
    expected = differences(
        counts["mine+typed"], counts["none+typed"], lambda sums: scores(sums, CLASSES, RADII), over_tiles
    )
    assert (shown["difference"], shown["low"], shown["high"]) == expected["f1_macro"]
    curve = [row for row in tables["radius.csv"] if row["method"] == "mine+typed"]
    assert [row["radius_um"] for row in curve] == RADII
    assert curve[1]["f1"] == values["f1/mine+typed"]
    assert curve[0]["f1"] < curve[1]["f1"] <= curve[2]["f1"]
    assert [row["name"] for row in judge.rows(scored[0])] == ["t0", "t0"]
    assert judge.compute_and_reset() == ({}, {})


def test_pale_nuclei_are_the_third_of_all_keypoints_with_the_least_dab():
    points = [(x, y, 0) for y in (12, 32, 52) for x in (12, 32, 52)]
    brown = brown_tile("brown", points, [0.3 + 0.1 * i for i in range(9)])
    mixed = brown_tile("mixed", points, [0.1, 0.05, 0.15, 0.2, *[1.0] * 5])
    # Of 18 keypoints six are pale: four of `mixed`, and those of `brown` with a DAB of .3 and .4.
    some = [(12, 12), (32, 12), (52, 12), (12, 32), (52, 52)]
    seen = {"none+typed": (IMAGE, found(some, [2] * 5)), "mine+typed": (IMAGE, found(some[1:2], [2]))}
    _, _, values, tables = judged([(brown, seen), (mixed, seen)])
    assert values["recall_pale/none+typed"] == pytest.approx(6 / 6)
    assert values["recall_pale/mine+typed"] == pytest.approx(2 / 6)
    row = next(r for r in tables["comparison.csv"] if (r["metric"], r["method"]) == ("recall_pale", "mine+typed"))
    assert (row["low"], row["high"]) == (1 / 4, 1 / 2)  # both tiles are of one kind in some of the resamples
    assert "third of all keypoints" in row["protocol"]
    row = next(row for row in tables["differences.csv"] if row["metric"] == "recall_pale")
    assert row["difference"] == pytest.approx(2 / 6 - 1)


def test_of_a_tile_whose_glass_is_not_white_dab_counts_from_its_glass():
    points = [(12, 12, 0), (32, 12, 0), (52, 12, 0)]
    tinted = brown_tile("tinted", points, [0.3, 0.3, 0.3])
    tinted["image"] = (tinted["image"] * [1, 0.9, 0.75]).round().astype(np.uint8)  # as brown as DAB .15
    clear = brown_tile("clear", points, [0.4, 0.4, 0.4])
    seen = {"none+typed": (IMAGE, found([(12, 12)], [2])), "mine+typed": (IMAGE, found([], []))}
    nothing = dict.fromkeys(seen, seen["mine+typed"])
    judge = evaluation()
    judge.update(tinted, seen, (255.0, 229.5, 191.25))
    judge.update(clear, nothing)
    # The three of `tinted` are less brown than those of `clear` by their own glass only.
    assert judge.compute_and_reset()[0]["recall_pale/none+typed"] == pytest.approx(1 / 3)


def test_other_methods_can_be_what_all_are_compared_with():
    entries = random_tiles()
    _, _, values, tables = judged(entries, against=["mine+typed", "elsewhere+typed"])
    pairs = {(row["method"], row["against"]): row for row in tables["differences.csv"] if row["metric"] == "f1"}
    assert set(pairs) == {("none+typed", "mine+typed"), ("mine+typed", "none+typed")}
    back, forth = pairs.values()
    assert back["difference"] == values["f1/none+typed"] - values["f1/mine+typed"]
    assert (back["low"], back["high"]) == (-forth["high"], -forth["low"])
    assert back["blocks_low"] == -forth["blocks_high"]


def test_the_order_of_tiles_changes_nothing():
    entries = random_tiles()
    straight, back = (judged(order)[2:] for order in (entries, entries[::-1]))
    assert np.array_equal(list(straight[0].values()), list(back[0].values()), equal_nan=True)
    assert repr(straight[1]) == repr(back[1])


def test_intervals_over_blocks_are_there_where_tiles_share_blocks():
    rows = judged(random_tiles())[3]["comparison.csv"]
    f1 = next(row for row in rows if row["metric"] == "f1")
    assert f1["blocks_low"] < f1["value"] < f1["blocks_high"]
    lonely = [(entry | {"group": ""}, methods) for entry, methods in random_tiles()]
    f1 = next(row for row in judged(lonely)[3]["comparison.csv"] if row["metric"] == "f1")
    assert np.isnan([f1["blocks_low"], f1["blocks_high"]]).all()
    assert f1["low"] < f1["value"] < f1["high"]


def test_the_closed_gap_by_hand():
    points = [(10 * i, 10, 0) for i in range(1, 6)]

    def first(n):
        return IMAGE, found([(x, y) for x, y, _ in points[:n]], [2] * n)

    types = {Method(name, "s"): TYPES for name in ("none", "mine", "rendered")}
    entry = tile("a", points), {"none+s": first(1), "mine+s": first(3), "rendered+s": first(5)}
    _, _, values, tables = judged([entry], types=types)
    # F1 is 2 tp / (5 + found): 2/6 without translation, 6/8 with it, 1 on the true H&E.
    assert values["gap_closed/mine+s"] == pytest.approx((6 / 8 - 2 / 6) / (1 - 2 / 6))
    assert "gap_closed/none+s" not in values
    assert "gap_closed/rendered+s" not in values
    row = next(row for row in tables["comparison.csv"] if row["metric"] == "gap_closed")
    assert row["protocol"].startswith("(F1 - F1 without translation)")
    assert "| mine+s | 0.750 |" in summary(tables["comparison.csv"])
    assert summary(tables["comparison.csv"]).splitlines()[0] == "| method | F1 | precision | recall | AP | gap closed |"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ceiling", [[(10, 10)], []])
def test_where_the_true_stain_brings_nothing_there_is_no_gap_to_close(ceiling):
    types = {Method(name, "s"): TYPES for name in ("none", "mine", "rendered")}
    methods = dict.fromkeys(map(str, types), (IMAGE, found([(10, 10)], [2])))
    methods["rendered+s"] = (IMAGE, found(ceiling, [2] * len(ceiling)))
    _, _, values, _ = judged([(tile("a", [(10, 10, 0)]), methods)], types=types)
    assert np.isnan(values["gap_closed/mine+s"])


def test_no_share_is_stated_of_a_gap_that_may_be_none():
    points = [(10 * i, 10, 0) for i in range(1, 6)]

    def first(n):
        return IMAGE, found([(x, y) for x, y, _ in points[:n]], [2] * n)

    types = {Method(name, "s"): TYPES for name in ("none", "mine", "rendered")}
    numbers = {"a": (1, 2, 4), "b": (2, 2, 1)}  # a gain on one tile, a loss on the other
    entries = [
        (tile(name, points), {str(method): first(n) for method, n in zip(types, found_n, strict=True)})
        for name, found_n in numbers.items()
    ]
    _, _, values, tables = judged(entries, types=types)
    assert np.isnan(values["gap_closed/mine+s"])
    assert "nan" not in summary(tables["comparison.csv"])


@pytest.mark.filterwarnings("error")
def test_tiles_without_points_and_methods_that_find_nothing():
    nothing, something = (IMAGE, found([], [])), (IMAGE, found([(10, 10)], [1]))
    entries = [
        (tile("empty", []), {"none+typed": nothing, "mine+typed": something}),
        (tile("one", [(10, 10, 1)]), {"none+typed": nothing, "mine+typed": something}),
    ]
    judge, scored, values, _ = judged(entries)
    assert (values["recall/none+typed"], values["f1/none+typed"], values["ap/none+typed"]) == (0, 0, 0)
    assert np.isnan(values["precision/none+typed"])
    assert (values["precision/mine+typed"], values["recall/mine+typed"]) == (0.5, 1)
    assert values["count_mae/none+typed"] == values["count_mae/mine+typed"] == 0.5
    rows = judge.rows(scored[0])
    assert [(row["n_true"], row["n_found"]) for row in rows] == [(0, 0), (0, 1)]
    assert np.isnan(rows[0]["f1"])
    assert rows[1]["f1"] == 0


def test_an_untyped_segmenter_is_judged_without_regard_to_class():
    entry = tile("a", [(10, 10, 1)]), {"none+blobs": (IMAGE, found([(10, 10)], [0]))}
    judge, scored, values, _ = judged([entry], types={Method("none", "blobs"): []})
    assert values["f1/none+blobs"] == 1
    assert not any("type" in key or "macro" in key or "stroma" in key for key in values)
    assert "type_accuracy" not in judge.rows(scored[0])[0]


def test_points_without_classes_need_no_map():
    entry = tile("a", [(10, 10, 0), (30, 30, 0)]), {"none+typed": (IMAGE, found([(10, 10)], [1]))}
    for class_map in (None, CLASS_MAP, {"else": "where"}):
        _, _, values, _ = judged([entry], types={Method("none", "typed"): TYPES}, classes=[], class_map=class_map)
        assert (values["recall/none+typed"], values["precision/none+typed"]) == (0.5, 1)
        assert values["ap/none+typed"] == 0.5


def test_annotators_agree_as_their_points_do_and_second_readings_are_left_out():
    points, other = np.array([[10, 10, 0], [30, 30, 1]]), np.array([[11, 10, 0]])
    readers = {"ann": points, "ben": other, "ann (hidden)": other}
    entry = (
        tile("a", points, readers=readers, second_readings=["ann (hidden)"]),
        {m: (IMAGE, found([], [])) for m in ("none+typed", "mine+typed")},
    )
    rows = {row["metric"]: row for row in judged([entry])[3]["agreement.csv"]}
    assert rows["human_f1"] == {"metric": "human_f1", "mean": pytest.approx(2 / 3)} | {
        "min": pytest.approx(2 / 3), "max": pytest.approx(2 / 3), "n": 1,
    }  # fmt: skip
    assert rows["human_f1/stroma"]["mean"] == 1
    alone = tile("b", points), entry[1]
    assert judged([alone])[3]["agreement.csv"] == []


def test_readers_are_told_apart_by_what_is_known_of_them_and_not_by_their_names():
    readers = {"A. Smith (MD)": np.array([[10, 10, 0], [30, 30, 1]]), "B. Jones (MD)": np.array([[11, 10, 0]])}
    entry = (
        tile("a", readers["A. Smith (MD)"], readers=readers),
        {m: (IMAGE, found([], [])) for m in ("none+typed", "mine+typed")},
    )
    rows = {row["metric"]: row for row in judged([entry])[3]["agreement.csv"]}
    assert rows["human_f1"]["mean"] == pytest.approx(2 / 3)


def test_floor_and_ceiling_may_have_any_name():
    types = {Method(name, "a+b"): TYPES for name in ("raw ihc", "mine", "truth")}
    roles = {"raw ihc": "none", "mine": "translation", "truth": "ceiling"}
    points = [(10 * i, 10, 0) for i in range(1, 6)]
    n = {"raw ihc": 1, "mine": 3, "truth": 5}
    methods = {f"{name}+a+b": (IMAGE, found([(x, y) for x, y, _ in points[:k]], [2] * k)) for name, k in n.items()}
    _, _, values, tables = judged([(tile("a", points), methods)], types=types, roles=roles)
    assert values["gap_closed/mine+a+b"] == pytest.approx((6 / 8 - 2 / 6) / (1 - 2 / 6))
    assert {row["against"] for row in tables["differences.csv"]} == {"raw ihc+a+b"}


def test_known_truth_adds_its_metrics_with_their_protocols():
    inst_hw = found([(10, 10), (30, 30)], [1, 2]).inst_hw
    truth = {"inst": inst_hw, "type": np.where(inst_hw == 2, 2, inst_hw)}
    entry = (
        tile("a", [(10, 10, 1)], **truth),
        dict.fromkeys(("none+typed", "mine+typed"), (IMAGE, found([(10, 10), (50, 50)], [1, 1]))),
    )
    judge, _, values, tables = judged([entry], truth_classes=TYPES)
    assert values["pq/none+typed"] == pytest.approx(1 / 2)
    assert (values["lost/none+typed"], values["invented/none+typed"]) == (1, 1)
    assert (values["f1_type/round/none+typed"], values["f1_type/long/none+typed"]) == (pytest.approx(2 / 3), 0)
    assert all(row["protocol"] for row in tables["comparison.csv"])
    assert {key.rpartition("/")[0] for key in values} <= set(judge.cards)
    assert "dab_leakage/none+typed" not in values  # nothing was translated


# ------------------------------------------------------------------ two processes

RANKED = """
import sys, torch
from ihc2he.models.pipeline.evaluation import MethodComparison
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
settings, entries = torch.load(f"{folder}/entries.pt", weights_only=False)
judge = MethodComparison(**settings)
for entry in entries[rank::2]:
    judge.update(*entry)
torch.save(judge.compute_and_reset(), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_say_what_one_says(tmp_path):
    entries = random_tiles(5)  # unequal shares
    torch.save((SETTINGS, entries), tmp_path / "entries.pt")
    ranks = [subprocess.Popen([sys.executable, "-c", RANKED, str(rank), str(tmp_path)]) for rank in (0, 1)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    for rank in (0, 1):
        assert repr(torch.load(tmp_path / f"{rank}.pt", weights_only=False)) == repr(judged(entries)[2:])
