"""Malformed configurations: command lines and experiment files."""

# ruff: noqa: E501  (tables of cases)

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .harness import Case, Change

KIND = "configurations"
FIT, NUCLEI, JUDGE, PREDICT = "CycleGAN, fit", "HoVer-Net, fit", "EndoNuke", "prediction"

# Keys by scenario, and the kind of value that each takes.
KEYS: Sequence[tuple[str, str, str]] = (
    (FIT, "data.crop_size", "int"), (FIT, "data.batch_size", "int"), (FIT, "data.eval_batch_size", "int"),
    (FIT, "data.num_workers", "int"), (FIT, "data.val_fraction", "float"), (FIT, "data.fraction", "float"),
    (FIT, "data.samples_per_epoch", "int?"), (FIT, "data.sampler", "str"), (FIT, "data.paired", "bool"),
    (FIT, "data.mpp", "float"), (FIT, "data.target_mpp", "float"), (FIT, "data.root", "str"), (FIT, "data.rebuild", "bool"), (FIT, "data.seed", "int"),
    (FIT, "data.store", "str"), (FIT, "model.n_epochs", "int"), (FIT, "model.lambda_cycle", "float"),
    (FIT, "model.pool_size", "int"), (FIT, "model.channels_last", "bool"), (FIT, "model.adversarial", "str"),
    (FIT, "model.label_smoothing", "float"), (FIT, "model.ema_decay", "float"),
    (FIT, "model.gradient_clip_val", "float?"), (FIT, "model.accumulate", "int"), (FIT, "model.metrics", "list?"),
    (FIT, "model.generator.width", "int"), (FIT, "model.generator.n_blocks", "int"),
    (FIT, "model.discriminator.width", "int"), (FIT, "model.optimizer.lr", "float"),
    (FIT, "model.optimizer.betas", "list"), (FIT, "model.lr_discriminator", "float?"), (FIT, "model.seed", "int"),
    (FIT, "trainer.max_epochs", "int"), (FIT, "trainer.log_every_n_steps", "int"),
    (FIT, "callbacks.stop_on_nan.every_n_steps", "int"), (FIT, "callbacks.last.dirpath", "str"), (FIT, "seed", "int"),
    (FIT, "stages", "list"), (FIT, "tags", "list"), (FIT, "float32_matmul_precision", "str"),
    (NUCLEI, "data.split", "int"), (NUCLEI, "data.augmentation", "dict?"), (NUCLEI, "model.classes", "list?"),
    (NUCLEI, "model.mode", "str"), (NUCLEI, "model.width", "int"), (NUCLEI, "model.losses", "dict?"),
    (NUCLEI, "model.msge_axis", "str"), (NUCLEI, "model.window", "int"), (NUCLEI, "model.overlap", "int"),
    (NUCLEI, "model.tta", "bool"), (NUCLEI, "model.ensemble", "list"), (NUCLEI, "model.lr_encoder", "float?"),
    (NUCLEI, "model.encoder", "dict"), (NUCLEI, "model.optimizer", "dict"), (NUCLEI, "model.scheduler", "dict?"),
    (JUDGE, "data.subset", "str"), (JUDGE, "data.annotators", "list?"), (JUDGE, "data.ids", "list?"),
    (JUDGE, "data.bad_labels", "str"), (JUDGE, "data.mpp", "float?"), (JUDGE, "model.use", "dict"),
    (JUDGE, "model.use.segmenters", "list"), (JUDGE, "model.class_map", "dict?"), (JUDGE, "model.radius_um", "float"),
    (JUDGE, "model.radii_um", "list"), (JUDGE, "model.ap_map", "dict?"), (JUDGE, "model.block", "int"),
    (JUDGE, "model.resamples", "int"), (JUDGE, "model.translators", "dict"), (PREDICT, "data.path", "str"),
    (PREDICT, "callbacks.writer.thresholds", "list"), (PREDICT, "callbacks.writer.write", "list"),
    (PREDICT, "model.translators.recolour.h_gain", "float"), (PREDICT, "model.segmenters.classical.mpp", "float"),
    (PREDICT, "data.done", "str?"), (PREDICT, "out", "path"),
)  # fmt: skip
WRONG = {
    "int": ("abc", "[1,2]", "{a: 1}", "1.5", "true", "null", "''", "nan"),
    "float": ("abc", "[1]", "{a: 1}", "true", "null", "''", "nan"),
    "bool": ("maybe", "[]", "3", "null", "{}", "''"),
    "str": ("[a, b]", "{a: 1}", "null", "true"),
    "path": ("[a, b]", "{a: 1}", "null"),
    "list": ("abc", "3", "{a: 1}", "true", "null", "''"),
    "dict": ("abc", "3", "[1]", "true", "null"),
}
OUT_OF_RANGE: Sequence[tuple[str, str, Sequence[str]]] = (
    (FIT, "data.crop_size", ("0", "-32", "31", "100000", str(10**30))),
    (FIT, "data.batch_size", ("0", "-1", str(10**30))), (FIT, "data.eval_batch_size", ("0", "-1")),
    (FIT, "data.num_workers", ("-1",)), (FIT, "data.val_fraction", ("1", "-0.1", "nan", "inf", "1e30")),
    (FIT, "data.fraction", ("0", "1.5", "-1", "inf")), (FIT, "data.samples_per_epoch", ("0", "-1", str(10**15))),
    (FIT, "data.mpp", ("0", "0.92", "inf")), (FIT, "data.target_mpp", ("0", "-1", "inf", "nan", "1e-9", "1e9")), (FIT, "data.brightness_contrast", ("1", "-1", "nan")),
    (FIT, "data.seed", ("-1", str(-(2**70)))), (FIT, "model.lambda_cycle", ("nan", "inf", "-inf", "-1")),
    (FIT, "model.lambda_identity", ("nan", "inf", "-1")), (FIT, "model.pool_size", ("-1",)),
    (FIT, "model.label_smoothing", ("-0.1", "1.5", "nan")), (FIT, "model.ema_decay", ("-0.1", "1", "2", "inf")),
    (FIT, "model.gradient_clip_val", ("-1", "nan", "0")), (FIT, "model.accumulate", ("0", "-1")),
    (FIT, "model.n_epochs", ("-5",)), (FIT, "model.n_epochs_decay", ("-5",)),
    (FIT, "model.optimizer.lr", ("-1", "nan", "inf", "1e38")), (FIT, "model.optimizer.betas", ("[2,2]", "[0.5]", "[]")),
    (FIT, "model.lr_discriminator", ("-1", "nan", "inf")),
    (FIT, "model.generator.width", ("0", "-1", str(10**7), str(10**30))), (FIT, "model.generator.n_blocks", ("-1",)),
    (FIT, "model.generator.dropout", ("-1", "2")), (FIT, "model.discriminator.width", ("0", "-8")),
    (FIT, "model.discriminator.n_layers", ("0", "-1", "30")),
    (FIT, "trainer.devices", ("0", "-7")), (FIT, "trainer.max_epochs", ("-5",)),
    (FIT, "trainer.limit_train_batches", ("-1", "1.5")), (FIT, "trainer.log_every_n_steps", ("-1",)),
    (FIT, "trainer.check_val_every_n_epoch", ("0", "-1")), (FIT, "seed", ("-1", str(2**40))),
    (FIT, "callbacks.stop_on_nan.every_n_steps", ("0", "-1")), (FIT, "callbacks.last.every_n_epochs", ("-1",)),
    (NUCLEI, "data.split", ("0", "4")), (NUCLEI, "model.width", ("0", "-32", "33")),
    (NUCLEI, "model.window", ("0", "-1", "16")), (NUCLEI, "model.overlap", ("-1", "48", "1000")),
    (NUCLEI, "model.losses.hv_mse", ("-1", "nan", "inf")), (NUCLEI, "model.lr_encoder", ("-1", "inf", "nan")),
    (NUCLEI, "model.optimizer.weight_decay", ("-1", "nan")),
    (JUDGE, "data.mpp", ("0", "-1", "inf", "nan")), (JUDGE, "data.batch_size", ("0", "-1")),
    (JUDGE, "model.radius_um", ("0", "-1", "nan", "inf")), (JUDGE, "model.radii_um", ("[0]", "[-1,3]", "[nan]")),
    (JUDGE, "model.block", ("0", "-1")), (JUDGE, "model.resamples", ("-1", str(10**15))), (JUDGE, "model.workers", ("-1",)),
    (JUDGE, "model.seed", ("-1",)), (JUDGE, "model.segmenters.classical.mpp", ("0", "-1", "inf", "1e-9")),
    (PREDICT, "data.batch_size", ("0",)), (PREDICT, "callbacks.writer.thresholds", ("[0.6,0.4,0.2]", "[nan,1,2]", "[0.1]")),
    (PREDICT, "model.translators.recolour.h_gain", ("nan", "inf", "-inf")),
)  # fmt: skip
CHOICES: Sequence[tuple[str, str]] = (
    (FIT, "experiment=smoke/cyclegan_bcii"), (FIT, "data=bic"), (FIT, "model=cyclgan"), (FIT, "trainer=gpuu"),
    (FIT, "callbacks=translaton"), (FIT, "logger=wand"), (FIT, "model/generator=resnet99"), (FIT, "debug=slow"),
    (FIT, "paths=none"), (FIT, "hparams_search=grid"), (FIT, "launcher=slurm"), (FIT, "hydra=fast"), (FIT, "nogroup=1"),
    (NUCLEI, "model/encoder=vgg"), (NUCLEI, "model/scheduler=linear"), (FIT, "model/encoder=resnet18"),
    (JUDGE, "model/translator@model.translators.mine=nowhere"), (FIT, "experiment=[a,b]"), (FIT, "experiment=../x"),
    (FIT, "data=null"), (FIT, "model=null"), (JUDGE, "data=pannuke"), (FIT, "model=hovernet"), (FIT, "model=pipeline"),
    (JUDGE, "model=cyclegan"),
)  # fmt: skip
FILES: Sequence[tuple[str, str, str]] = (
    (FIT, "data.root=nowhere", "nowhere"), (FIT, "ckpt_path=nowhere.ckpt", "nowhere.ckpt"), (FIT, "ckpt_path=last", "last"),
    (FIT, "ckpt_path=bci", "ckpt_path=bci"), (FIT, "data.root=bci/HE/train", "bci/HE/train"),
    (FIT, "data.store=bci/HE/train/x.png/y", "store"), (FIT, "paths.outputs=/proc/nowhere", "/proc"),
    (FIT, "hydra.run.dir=/dev/null/run", "/dev/null"), (FIT, "data.store=/dev/null", "/dev/null"),
    (NUCLEI, "data.root=nowhere", "nowhere"), (NUCLEI, "model.weights=nowhere.tar", "nowhere.tar"),
    (NUCLEI, "model.ensemble=[nowhere]", "nowhere"), (NUCLEI, "model.encoder.weights=nowhere.pth", "nowhere"),
    (JUDGE, "data.root=nowhere", "nowhere"), (JUDGE, "data.subset=nowhere", "nowhere"), (JUDGE, "data.ids=[999]", "999"),
    (JUDGE, "data.ids=[a-b]", "a-b"), (JUDGE, "data.val_ids=[0-2]", "no tile to test"), (JUDGE, "data.annotators=[ptg99]", "ptg99"),
    (PREDICT, "data.path=nowhere", "nowhere"), (PREDICT, "data.path='*.xyz'", "*.xyz"), (PREDICT, "data.path=''", "path"),
    (PREDICT, "out=tiles", "tiles"), (PREDICT, "out=/dev/null", "/dev/null"), (PREDICT, "data.path=/dev/null", "/dev/null"),
    (PREDICT, "model.use.translators=[cyclegan]", "weights"), (PREDICT, "model.use.segmenters=[hovernet]", "weights"),
    (PREDICT, "model.use.translators=[nowhere]", "nowhere"), (PREDICT, "model.use.translators=[none,recolour]", "one"),
    (PREDICT, "model.use={translators: [reinhard]} model.translators.reinhard.target=nowhere", "nowhere"),
)  # fmt: skip
TARGETS: Sequence[tuple[str, str]] = (
    (FIT, "model._target_=ihc2he.models.translation.cyclegan.module.CycleGAM"), (FIT, "model._target_=os.system"),
    (FIT, "model._target_=builtins.print"), (FIT, "model._target_=torch.nn.Linear"), (FIT, "model._target_=''"),
    (FIT, "model._target_=3"), (FIT, "model._target_=null"), (FIT, "model._target_=nowhere"),
    (FIT, "model._target_=.module"), (FIT, "model._target_=ihc2he..module"), (FIT, "model._target_=this"),
    (FIT, "data._target_=ihc2he.data.bci.find_folders"), (FIT, "data._target_=ihc2he.models.translation.cyclegan.module.CycleGAN"),
    (FIT, "trainer._target_=os.system"), (FIT, "model.generator._target_=os.system"),
    (FIT, "model.optimizer._target_=torch.optim.Adamm"), (FIT, "model.optimizer._target_=os.system"),
    (FIT, "callbacks.stop_on_nan._target_=os.system"), (FIT, "+callbacks.mine._target_=nowhere.Callback"),
    (FIT, "+callbacks.mine={_target_: os.system, command: touch OWNED}"), (FIT, "+callbacks.mine=3"),
    (FIT, "+callbacks.mine=[1]"), (FIT, "+logger.mine=abc"), (FIT, "+logger.mine={_target_: os.system}"),
    (NUCLEI, "model.encoder._target_=os.system"), (NUCLEI, "model.scheduler._target_=os.system"),
    (NUCLEI, "data.augmentation={_target_: os.system}"), (JUDGE, "model.translators.recolour._target_=os.system"),
    (JUDGE, "model.segmenters.classical._target_=torch.nn.Identity"), (FIT, "model._target_=ihc2he"),
    (FIT, "model.features={_target_: os.system}"), (FIT, "model.generator={width: 8}"),
)  # fmt: skip
SYNTAX: Sequence[tuple[str, str]] = (
    (FIT, "="), (FIT, "data.root"), (FIT, "data.root=a=b"), (FIT, "data..root=x"), (FIT, "data.simulate={tiles:"),
    (FIT, "data.root='x"), (FIT, "stages=[fit"), (FIT, "dàta.root=x"), (FIT, "data.root=${nowhere}"),
    (FIT, "data.root=${oc.env:NOT_SET_ANYWHERE}"), (FIT, "data.root=${nothing:1}"), (FIT, "data.root=${data.root}"),
    (FIT, "~data.root"), (FIT, "~nowhere"), (FIT, "+data.root=x"), (FIT, "+data.new=1"), (FIT, "++data.new=1"),
    (FIT, "data.root=???"), (FIT, "--nonsense"), (FIT, "--config-dir=nowhere"), (FIT, "--config-name=nowhere"),
    (FIT, "data.batch_size=choice(1,2)"), (FIT, "data.batch_size=1,2"), (FIT, "@x=1"), (FIT, "data.root=\0"),
    (FIT, "stages=[fly]"), (FIT, "stages=[]"), (FIT, "stages=[test]"), (FIT, "optimized_metric=val/nothing"),
    (FIT, "float32_matmul_precision=extreme"), (FIT, "trainer.precision=17"), (FIT, "trainer.accelerator=abacus"),
    (FIT, "trainer.strategy=magic"), (FIT, "model.adversarial=gan"), (FIT, "model.metrics=[psnr,beauty]"),
    (FIT, "data.sampler=random"), (NUCLEI, "model.mode=slow"), (NUCLEI, "model.msge_axis=up"),
    (NUCLEI, "model.classes=[a,b]"), (NUCLEI, "model.losses={}"), (NUCLEI, "model.losses={beauty: 1}"),
    (NUCLEI, "data.sampler=best"), (JUDGE, "data.bad_labels=ignore"), (JUDGE, "model.use.translators=[]"),
    (JUDGE, "model.use={}"), (JUDGE, "model.radii_um=[]"), (JUDGE, "model.class_map={nothing: stroma}"),
    (JUDGE, "model.ap_map={nothing: stroma}"), (PREDICT, "callbacks.writer.write=[everything]"),
    (PREDICT, "callbacks.writer.thresholds=[]"), (JUDGE, "stages=[fit]"), (PREDICT, "stages=[test]"),
    (JUDGE, "stages=[validate]"), (FIT, "stages=[predict]"), (FIT, "data.root=[]"),
)  # fmt: skip
# The same values in other spellings, which change nothing.
SAME: Sequence[tuple[str, str]] = (
    (FIT, "model.lambda_cycle=10"), (FIT, "model.lambda_cycle=1e1"), (FIT, "stages=['fit']"),
    (FIT, "data.batch_size=0x1"), (FIT, "paths.data=Bücher/日本 語"), (FIT, "tags=['ä', '日本', '🙂']"),
    (JUDGE, "model.use.translators=recolour"), (JUDGE, "data.ids=[0-2]"), (JUDGE, "data.ids=['0', 1, '2-2']"),
    (PREDICT, "data.path=tiles/"), (PREDICT, "data.path=./tiles"), (PREDICT, "data.path='tiles/*.png'"),
)  # fmt: skip
HEAD = "# @package _global_\ndefaults:\n  - /experiment/smoke/cyclegan_bci\n"
EXPERIMENTS: Sequence[tuple[str, bytes | None]] = (
    ("empty file", b""), ("broken YAML", b"# @package _global_\ndefaults: [\n"), ("tabs", b"# @package _global_\n\tseed: 3\n"),
    ("not UTF-8", b"# @package _global_\nseed: \xff\xfe\n"), ("UTF-16", "# @package _global_\nseed: 3\n".encode("utf-16")),
    ("a list", b"# @package _global_\n- a\n- b\n"), ("a text", b"# @package _global_\njust a text\n"),
    ("unknown default", b"# @package _global_\ndefaults:\n  - override /data: nowhere\n"),
    ("unknown default", b"# @package _global_\ndefaults:\n  - /nowhere/at/all\n"),
    ("unknown default", b"# @package _global_\ndefaults:\n  - override /nogroup: x\n"),
    ("defaults of another type", b"# @package _global_\ndefaults: data\n"),
    ("defaults of another type", b"# @package _global_\ndefaults:\n  - 3\n"),
    ("unknown key", f"{HEAD}sead: 3\n".encode()), ("unknown key", f"{HEAD}data:\n  crop_sise: 3\n".encode()),
    ("wrong type", f"{HEAD}seed: many\n".encode()), ("wrong type", f"{HEAD}model: 3\n".encode()),
    ("wrong type", f"{HEAD}data:\n- a\n".encode()), ("wrong type", f"{HEAD}stages: fit\n".encode()),
    ("wrong type", f"{HEAD}model:\n  generator: small\n".encode()), ("key twice", f"{HEAD}seed: 3\nseed: 4\n".encode()),
    ("recursion", b"# @package _global_\ndefaults:\n  - /experiment/mine\n"),
    ("recursion", f"{HEAD}seed: ${{seed}}\n".encode()), ("alias loop", f"{HEAD}tags: &a [*a]\n".encode()),
    ("hostile YAML", f"{HEAD}tags: !!python/object/apply:os.system ['touch OWNED']\n".encode()),
    ("interpolation to nothing", f"{HEAD}seed: ${{nowhere}}\n".encode()), ("a folder of that name", None),
    ("no package line", b"defaults:\n  - /experiment/smoke/cyclegan_bci\nseed: 3\n"),
    ("control characters", f"{HEAD}seed: \x00\n".encode()), ("deep nesting", (HEAD + "tags: " + "[" * 3000 + "]" * 3000).encode()),
)  # fmt: skip


def cases() -> list[Case]:
    """Return the cases."""
    found = []
    for number, (scenario, key, _) in enumerate(KEYS):
        found.append(Case(KIND, "typo in a key", scenario, _typo(key), number))
    for number, (scenario, key, kind) in enumerate(KEYS):
        found += [
            Case(KIND, "value of a wrong type", scenario, _wrong(key, kind, k), number, f"{k} ") for k in range(2)
        ]
    for scenario, key, values in OUT_OF_RANGE:
        found += [Case(KIND, "value out of range", scenario, _given(f"{key}={value}", key), i, f"{key} ")
                  for i, value in enumerate(values)]  # fmt: skip
    for number, (scenario, choice) in enumerate(CHOICES):
        found.append(Case(KIND, "unknown or unfitting choice", scenario, _given(choice), number))
    for number, (scenario, argument, name) in enumerate(FILES):
        found.append(Case(KIND, "missing or unusable file", scenario, _given(argument, name), number))
    for number, (scenario, argument) in enumerate(TARGETS):
        found.append(Case(KIND, "unknown or hostile _target_", scenario, _given(argument, "os.system"), number))
    for number, (scenario, argument) in enumerate(SYNTAX):
        found.append(Case(KIND, "syntax, unknown names, empty lists", scenario, _given(argument, "override"), number))
    for number, (scenario, argument) in enumerate(SAME):
        found.append(Case(KIND, "other spelling of the same", scenario, _given(argument), number))
    for number, (family, content) in enumerate(EXPERIMENTS):
        found.append(Case(KIND, f"experiment file: {family}", FIT, _experiment(content), number))
    return found


def _typo(key: str) -> Callable[[np.random.Generator], Change]:
    def mutate(rng: np.random.Generator) -> Change:
        parts = key.split(".")
        which = int(rng.integers(len(parts)))
        part = parts[which]
        at = int(rng.integers(1, len(part)))
        letter = "abcdefghijklmnopqrstuvwxyz"[int(rng.integers(26))]
        edits = [
            part[:at] + part[at + 1 :],
            part[:at] + letter + part[at:],
            part[: at - 1] + part[at] + part[at - 1] + part[at + 1 :],
        ]
        parts[which] = next(edit for edit in [edits[int(rng.integers(3))], part + "x"] if edit != part)
        return Change([f"{'.'.join(parts)}=3"], names=(parts[which],))

    return mutate


def _wrong(key: str, kind: str, number: int) -> Callable[[np.random.Generator], Change]:
    def mutate(rng: np.random.Generator) -> Change:
        values = [value for value in WRONG[kind.rstrip("?")] if not (kind.endswith("?") and value in ("null", "''"))]
        value = values[rng.permutation(len(values))[number]]
        return Change([f"{key}={value}"], names=(key, key.rpartition(".")[2]))

    return mutate


def _given(arguments: str, *names: str) -> Callable[[np.random.Generator], Change]:
    """Return a mutation that adds to the command line; the message has to name a key, its last part, or the value."""
    key, _, value = arguments.partition("=")
    key = key.lstrip("+~")
    own = [name for name in (key, key.rpartition(".")[2], value.strip("[]'{}")) if name]
    given = arguments.split(" model.") if " model." in arguments else [arguments]
    split = [given[0], *(f"model.{rest}" for rest in given[1:])]
    found = [*own, *names, "NaN or infinite"]

    def mutate(rng: np.random.Generator) -> Change:
        return Change(split, names=found)

    return mutate


def _experiment(content: bytes | None) -> Callable[[np.random.Generator], Change]:
    """Return a mutation that runs a user's own experiment file."""

    def mutate(rng: np.random.Generator) -> Change:
        file = Path("conf/experiment/mine.yaml")
        file.parent.mkdir(parents=True)
        if content is None:
            file.mkdir()
        else:
            file.write_bytes(content)
        return Change(["--config-dir=conf", "experiment=mine"],
                      names=("mine", "sead", "crop_sise", "seed", "model", "data", "stages", "generator", "tags", "nowhere", "nogroup", "defaults", "experiment"))  # fmt: skip

    return mutate
