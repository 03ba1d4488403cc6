"""The W&B workspace of a project: `python -m ihc2he.dashboard ENTITY/PROJECT`."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from ihc2he.errors import ConfigError, Ihc2heError
from ihc2he.explain import write_what_is_possible

HELP = """\
Make a saved view of a W&B project, with sections for losses, image quality, segmentation, throughput, panels and the
worst tiles. An existing view is never changed.

  python -m ihc2he.dashboard ENTITY/PROJECT     for instance me/ihc2he

Needs `pip install 'ihc2he[dashboard]'` and `wandb login`.
"""
STEP = "trainer/global_step"
COLUMNS = (  # of the table of runs
    "best/val/he/ssim", "best/val/bpq", "best/epoch", "test/he/ssim", "test/bpq", "test/f1/none+hovernet",
    "test/f1/cyclegan+hovernet", "parameters", "device", "seconds/fit", "throughput/images_per_second.mean",
)  # fmt: skip


class Panel(NamedTuple):
    """What a panel shows.

    Attributes:
        kind: `lines` over steps, `bars` with one bar per run, `pictures`, or `table`.
        title: of the panel.
        keys: as they are logged; a single one that ends in `*` means all keys that begin like this.
    """

    kind: str
    title: str
    keys: tuple[str, ...]


def _lines(title: str, *keys: str) -> Panel:
    return Panel("lines", title, keys)


def _bars(title: str, *keys: str) -> Panel:
    return Panel("bars", title, keys)


SECTIONS: dict[str, list[Panel]] = {
    "Losses": [
        _lines("CycleGAN: generators and discriminators", "train/loss_g", "train/loss_d"),
        _lines("Cycle", "train/loss_cycle_ihc", "train/loss_cycle_he"),
        _lines("Identity", "train/loss_identity_ihc", "train/loss_identity_he"),
        _lines("Adversarial losses of the generators", "train/loss_g_he", "train/loss_g_ihc"),
        _lines("Discriminators", "train/loss_d_he", "train/loss_d_ihc"),
        _lines("HoVer-Net", "train/loss"),
        _lines("Nucleus or not", "train/loss_np_ce", "train/loss_np_dice"),
        _lines("Horizontal and vertical maps", "train/loss_hv_mse", "train/loss_hv_msge"),
        _lines("Types", "train/loss_nc_ce", "train/loss_nc_dice"),
        _lines("Learning rates", "lr-*"),
    ],
    "Image quality": [
        _lines("SSIM of translated H&E", "val/he/ssim"),
        _lines("PSNR of translated H&E", "val/he/psnr"),
        _lines("FID of translated H&E", "val/he/fid"),
        _lines("KID of translated H&E", "val/he/kid"),
        _lines("Hematoxylin kept; below 0 is inverted", "val/he/hematoxylin_correlation"),
        _lines("Nuclear stain kept", "val/he/nuclear_correlation"),
        _lines("DAB left in translated H&E", "val/he/dab_ratio"),
        _lines("SSIM of translated IHC", "val/ihc/ssim"),
        _bars("Test: SSIM of translated H&E", "test/he/ssim"),
        _bars("Test: PSNR of translated H&E", "test/he/psnr"),
    ],
    "Segmentation": [
        _lines("Panoptic quality", "val/bpq", "val/mpq"),
        _lines("Detection and segmentation quality", "val/dq", "val/sq"),
        _lines("Panoptic quality of each type", "val/pq/*"),
        _lines("Detection", "val/f1", "val/precision", "val/recall"),
        _lines("Types of matched nuclei", "val/type_accuracy"),
        _lines("AJI and Dice", "val/aji", "val/dice"),
        _bars("Test: panoptic quality", "test/bpq", "test/mpq"),
        _bars("Pipeline: F1 on keypoints", "test/f1/none+hovernet", "test/f1/cyclegan+hovernet"),
        _bars("Pipeline: precision", "test/precision/none+hovernet", "test/precision/cyclegan+hovernet"),
        _bars("Pipeline: recall", "test/recall/none+hovernet", "test/recall/cyclegan+hovernet"),
    ],
    "Throughput": [
        _lines("Images per second, all devices", "throughput/images_per_second"),
        _lines("Share of time waiting for data", "throughput/data_wait"),
        _lines("GPU memory, GB", "throughput/gpu_memory_gb"),
    ],
    "Panels": [
        Panel("pictures", "Validation", ("panels/val_00", "panels/val_01")),
        Panel("pictures", "Test", ("panels/test_00", "panels/test_01")),
    ],
    "Worst tiles": [Panel("table", "Worst tiles of the test", ("worst_tiles",))],
}


def workspace(entity: str, project: str) -> Any:
    """Return the workspace, which is not saved yet.

    Args:
        entity: user or team.
        project: of the entity.

    Raises:
        ConfigError: if the package that makes workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        msg = "Making the dashboard needs the package wandb-workspaces: pip install 'ihc2he[dashboard]'"
        raise ConfigError(msg) from error
    return ws.Workspace(
        entity=entity,
        project=project,
        name="ihc2he",
        sections=[
            ws.Section(
                name=name,
                panels=[_built(panel) for panel in panels],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=3, rows=-(-len(panels) // 3)),
            )
            for name, panels in SECTIONS.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(pinned_columns=[f"summary:{key}" for key in COLUMNS]),
    )


def _built(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "pictures":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=1)
    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.keys[0], layout=wr.Layout(w=24, h=16))
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys))
    if panel.keys[0].endswith("*"):
        return wr.LinePlot(title=panel.title, x=STEP, metric_regex=f"^{panel.keys[0][:-1]}.*")
    return wr.LinePlot(title=panel.title, x=STEP, y=list(panel.keys))


def main(arguments: list[str]) -> int:
    """Return the exit status: 0; 2 after one line that says what is wrong; 1 if W&B refuses."""
    write_what_is_possible()
    if not arguments or any(a in ("-h", "--help", "help") for a in arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    try:
        entity, project = _target(arguments)
        made = workspace(entity, project)
        _save(made)
    except Ihc2heError as error:
        print(f"ihc2he: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(made.url)
    return 0


def _target(arguments: list[str]) -> tuple[str, str]:
    entity, slash, project = arguments[0].partition("/")
    if len(arguments) != 1 or not (entity and slash and project) or "/" in project:
        msg = f"Expected ENTITY/PROJECT, such as me/ihc2he, found '{' '.join(arguments)}'."
        raise ConfigError(msg)
    return entity, project


def _save(made: Any) -> None:
    """Save a workspace as a new view.

    Raises:
        ConfigError: if nobody is logged in.
        Ihc2heError: if W&B does not accept it.
    """
    import wandb

    if not wandb.login(prompt=False, verify=False):
        msg = "Nobody is logged in to W&B: run `wandb login`, or set WANDB_API_KEY."
        raise ConfigError(msg)
    try:
        made.save()
    except Exception as error:
        target = f"{made.entity}/{made.project}"
        msg = f"W&B did not accept the view of {target} ({type(error).__name__}: {error}). Does the project exist?"
        raise Ihc2heError(msg) from error
