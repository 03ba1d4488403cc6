"""The report of a sweep or study: which setting was the best, by how much beyond chance, and its command line."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from markupsafe import Markup

from ihc2he.files import read_csv
from ihc2he.metrics.cards import badness
from ihc2he.report.forest import Line, forest
from ihc2he.report.parts import MOST_ROWS, Section, bracketed, brief, macros, parsed, rest_of, shown
from ihc2he.report.pictures import shrunk
from ihc2he.sweep.settings import arm_of, numbers_of, varied
from ihc2he.sweep.tables import KNOWN, REPETITIONS, ended, jobs_of

MOST = 40  # settings in the forest plot
MOST_TEXT = 200  # characters of an error
PREFERRED = ("f1", "bpq")  # of the metrics of tests, if none was to be optimised; otherwise it is their first one
FEW = 6  # arms of a study in a sentence
_PICTURES = {
    "study.png": "Each arm of the study less the reference",
    "sweep.png": "Each line is a job",
    "importance.png": "How much of the variance goes with each setting alone",
}
STUDY = "study.csv"  # of `ihc2he.sweep.arms`


class Setting(NamedTuple):
    """A setting, and the values of the jobs that repeat it.

    Attributes:
        name: what is particular about it.
        values: by repetition, such as `seed=1`.
    """

    name: str
    values: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean of its values."""
        return fmean(self.values.values())


class Ranking(NamedTuple):
    """The settings of a sweep by a metric, the best one first.

    Attributes:
        metric: its name.
        better: its direction.
        settings: with at least one value each.
    """

    metric: str
    better: str
    settings: list[Setting]


def ranking(folder: Path) -> Ranking | None:
    """Return the settings of a sweep by what was to be optimised, or else by a metric of its tests.

    Args:
        folder: of the sweep.
    """
    jobs = jobs_of(folder)
    keys = varied(jobs)
    apart = [key for key in keys if key not in REPETITIONS]
    repeats = [key for key in keys if key in REPETITIONS]
    last = Counter(key.rpartition(".")[2] for key in apart)
    short = {key: key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in apart}
    metric, better, values = _metric(folder, jobs)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for job, tested in zip(jobs, values, strict=True):
        own = job["overrides"]
        start = ", ".join(f"{short[key]}={own.get(key, '-')}" for key in apart)
        again = ", ".join(f"{key}={own.get(key, '-')}" for key in repeats) or f"job {job['job']}"
        for group, value in tested.items():
            if isfinite(value):
                found[", ".join(filter(None, [start, group])) or "the only setting"][again] = value
    settings = [Setting(name, values) for name, values in found.items()]
    settings.sort(key=lambda one: badness(one.mean, better))
    return Ranking(metric, better, settings) if settings else None


def _metric(folder: Path, jobs: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[dict[str, float]]]:
    """Return a metric, its direction, and its values in each job by group."""
    optimised = next((job for job in jobs if job["metric"] and job["value"] is not None), None)
    if optimised is not None:
        values = [{"": nan if job["value"] is None else job["value"]} for job in jobs]
        return optimised["metric"], optimised["better"], values
    tables = [[row for row in read_csv(path) if row["value"]] for path in sorted(folder.rglob("test.csv"))]
    keys = dict.fromkeys(key for job in jobs for key in job["metrics"])
    metric = next((row["metric"] for rows in tables for row in rows if row["metric"] in PREFERRED), "")
    metric = metric or next((row["metric"] for rows in tables for row in rows), "")
    better = next(
        (row["better"] for rows in tables for row in rows if row["metric"] == metric and row["better"]), "higher"
    )
    chosen = [metric] if metric in keys else [key for key in keys if key.rpartition("/")[0] == metric]
    values = [{key[len(metric) + 1 :]: job["metrics"].get(key, nan) for key in chosen} for job in jobs]
    return metric, better, values


class Difference(NamedTuple):
    """A setting against another one, over the jobs with the same seed or split, which are pairs.

    Attributes:
        one: mean of the setting over these pairs.
        other: that of the other one.
        low: lower end of the 95 % interval of the first less the second, by Student's t; NaN without one.
        high: upper end.
        pairs: their number, two at least.
    """

    one: float
    other: float
    low: float
    high: float
    pairs: int


def difference(one: Setting, other: Setting) -> Difference | None:
    """Return how two settings differ; None: fewer than two pairs.

    Pairs that all differ by the same, such as of jobs whose seed changes nothing, say nothing about chance.

    >>> difference(Setting("a", {"1": 3, "2": 5}), Setting("b", {"1": 1, "2": 3, "3": 9}))
    Difference(one=4.0, other=2.0, low=nan, high=nan, pairs=2)
    """
    shared = [key for key in one.values if key in other.values]
    if len(shared) < 2:
        return None
    from scipy.stats import t

    own, others = ([setting.values[key] for key in shared] for setting in (one, other))
    apart = [first - second for first, second in zip(own, others, strict=True)]
    means, spread = (fmean(own), fmean(others)), stdev(apart)
    if spread <= 1e-9 * max(map(abs, [*own, *others])):
        return Difference(*means, nan, nan, len(shared))
    half = spread / len(apart) ** 0.5 * float(t.ppf(0.975, len(apart) - 1))
    return Difference(*means, fmean(apart) - half, fmean(apart) + half, len(apart))


def answer(folder: Path) -> list[str] | None:
    """Return which setting was the best, by how much, and whether that can be told from chance."""
    if not (folder / "sweep.csv").is_file():
        return None
    if rows := read_csv(folder / STUDY):
        return [*_studied(rows), _ended(folder)]
    found = ranking(folder)
    if found is None:
        return ["No job has a value that could be compared.", _ended(folder)]
    best, *others = found.settings
    if not others:
        return [f"{found.metric} is {_value(best)}.", _ended(folder)]
    said = _compared(found, best, others[0])
    if found.metric.startswith("val/"):
        said.append("These are values of the validation, which chose: run the test once, with the best command.")
    elif len(others) > 1:
        said.append(f"The best of {len(others) + 1} settings was picked on these same runs, which flatters it.")
    return [*said, _ended(folder)]


def _studied(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return which arms of a study differ from its reference, by the first metric, beyond what chance explains."""
    metric = rows[0]["metric"]
    compared = [row for row in rows if row["metric"] == metric and isfinite(parsed(row["difference"]))]
    known = [row for row in compared if isfinite(parsed(row["difference_low"]))]
    what = metric.replace("_", " ")
    if not known:
        return [f"No arm has an interval of its difference from the reference in {what}."]
    clear = [row for row in known if parsed(row["difference_low"]) > 0 or parsed(row["difference_high"]) < 0]
    if not clear:
        return [f"No arm of {len(known)} can be told apart from the reference in {what}."]
    clear.sort(key=lambda row: -abs(parsed(row["difference"])))
    named = [
        f"{arm_of(row)} {brief(parsed(row['difference']), '+')} "
        f"{bracketed(parsed(row['difference_low']), parsed(row['difference_high']), '+')}"
        for row in clear[:FEW]
    ]
    more = f" and {len(clear) - FEW} others" if len(clear) > FEW else ""
    said = [
        f"{len(clear)} of {len(known)} arms can be told apart from the reference in {what}: {'; '.join(named)}{more}."
    ]
    if len(known) > 1:
        said.append("Each has a 95 % interval of its own, so about one in 20 differs by chance.")
    return said


def _compared(found: Ranking, best: Setting, other: Setting) -> list[str]:
    """Return the difference of the best two settings in a sentence that claims no more than its interval."""
    which = f"the {'lowest' if found.better == 'lower' else 'best'} of {len(found.settings)} settings"
    apart = difference(best, other)
    unknown = ""
    if apart is None:
        unknown = "No two seeds were repeated for both, so it is not known whether that is more than chance."
    elif isnan(apart.low):
        unknown = f"All {apart.pairs} pairs of runs differ by the same, so they do not say what chance does."
    elif badness(apart.one, found.better) > badness(apart.other, found.better):
        unknown = f"In the {apart.pairs} pairs of runs that both have, it is the other way round."
    if apart is None or unknown:
        return [
            f"{best.name} has {found.metric} {_value(best)}, {which}; next is {other.name} with {_value(other)}.",
            unknown,
        ]
    gap = apart.one - apart.other
    low, high = (-apart.high, -apart.low) if gap < 0 else (apart.low, apart.high)
    ends = f"95 % interval {brief(low)} to {brief(high)} over {apart.pairs} pairs of runs"
    if low > 0:
        more = f"{brief(abs(gap))} {'more' if gap > 0 else 'less'} {found.metric}"
        return [
            f"{best.name} has {more} than {other.name}, the next of {len(found.settings)} settings ({ends}): "
            f"{brief(apart.one)} instead of {brief(apart.other)}."
        ]
    return [
        f"{best.name} and {other.name} cannot be told apart: {found.metric} {brief(apart.one)}, {which}, and "
        f"{brief(apart.other)}, a difference of {brief(abs(gap))} ({ends})."
    ]


def _ended(folder: Path) -> str:
    """Return how the jobs ended, and what the first failed one says."""
    jobs = jobs_of(folder)
    text = f"Of {len(jobs)} jobs: {ended(jobs)}."
    errors = [job for job in jobs if job["status"] not in KNOWN]
    return f"{text} Job {errors[0]['job']}: {errors[0]['status'][:MOST_TEXT]}" if errors else text


def _value(setting: Setting) -> str:
    """Return the value of a setting in words."""
    values = [*setting.values.values()]
    return (
        f"{brief(setting.mean)} (mean of {len(values)}, sd {stdev(values):.3f})"
        if len(values) > 1
        else brief(values[0])
    )


def _forest(folder: Path) -> Markup | None:
    """Return the settings with the mean and standard deviation over their repetitions."""
    found = ranking(folder)
    if found is None:
        return None
    lines = []
    for number, setting in enumerate(found.settings[:MOST]):
        values = [*setting.values.values()]
        mean, sd = setting.mean, stdev(values) if len(values) > 1 else nan
        cell = (brief(mean), f"sd {sd:.3f}, n = {len(values)}") if len(values) > 1 else brief(mean)
        lines.append(
            Line(
                setting.name, mean, mean - sd, mean + sd, cells=[cell], kind="" if number else "best",
                ones=values if len(values) > 1 else (),
            )
        )  # fmt: skip
    several = any(len(setting.values) > 1 for setting in found.settings)
    caption = f"{found.metric}, {found.better} is better."
    if several:
        caption += " Rings: the runs; disc and line: their mean, and one standard deviation to each side."
    if len(found.settings) > MOST:
        caption += f" The first {MOST} of {len(found.settings)} settings."
    return forest(caption, ["setting", found.metric], lines)


def _best(folder: Path) -> Markup | None:
    """Return the command line of the best job."""
    path = folder / "best.txt"
    return macros().preformatted(path.read_text(encoding="utf-8").strip()) if path.is_file() else None


def _pictures(folder: Path) -> Markup | None:
    """Return all jobs in one picture, and how much each setting matters."""
    images = [shrunk(path, text) for name, text in _PICTURES.items() if (path := folder / name).is_file()]
    return macros().figures(images) if images else None


def _table(name: str) -> Callable[[Path], Markup | None]:
    def build(folder: Path) -> Markup | None:
        rows = read_csv(folder / name)
        if not rows:
            return None
        body = [[_cell(value) for value in row.values()] for row in rows[:MOST_ROWS]]
        return macros().table([*rows[0]], body) + rest_of(rows, name)

    return build


def _cell(text: str) -> str:
    """Return a cell of a table, shorter if it is a long number.

    >>> _cell("0.123456789"), _cell("3"), _cell("recolour")
    ('0.1235', '3', 'recolour')
    """
    return text if len(text) < 8 or not numbers_of([text]) else shown(float(text))


SECTIONS = (
    Section("Settings", _forest),
    Section("Best command", _best),
    Section("All jobs at once", _pictures),
    Section("Arms", _table(STUDY), folded=True),
    Section("Means", _table("mean_sd.csv"), folded=True),
    Section("Jobs", _table("sweep.csv"), folded=True),
)
