"""The directions of imports, and what nobody but one room may do; read from the sources, lazy imports too."""

import ast
from pathlib import Path

import pytest

import ihc2he

PACKAGE = Path(ihc2he.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

# From the bottom to the top: a room may import those of its own line and of the lines above it.
LAYERS = (
    (
        "errors",
        "arguments",
        "files",
        "config",
        "build",
        "datainfo",
        "ranks",
        "internals",
        "typed",
        "explain",
        "folders",
        "weights",
    ),
    ("stain", "tiling"),
    ("images", "nuclei"),
    ("losses", "metrics", "simulate"),
    ("data",),
    ("models",),
    ("callbacks", "loggers", "report", "sweep"),
    ("launching", "runner", "dashboard", "export", "app"),
    ("train",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FOREIGN = {  # private names of other libraries, which a class of ours may inherit
    "_trainer", "_fabric", "_on_before_step", "_on_after_step", "_layer_sync", "_should_skip_saving_checkpoint",
    "_save_topk_checkpoint", "_save_checkpoint", "_batches_that_stepped", "_check_log_dir_exists", "_experiment",
    "_wandb_init", "_return_value", "_foreach_lerp_", "_is_amx_tile_supported", "_hparams", "_modules", "_parameters",
}  # fmt: skip
OWN = {"cls", "self", "super"}  # whose private parts are one's own


def room(module: str) -> str:
    return module.split(".")[1]


def name_of(path: Path) -> str:
    return ".".join(["ihc2he", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, anywhere in it, but for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    hidden = {id(inner) for node in lazy for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if node.module == "ihc2he" else node.module for alias in node.names}
    return {name for name in found if name.startswith("ihc2he.") and name != "ihc2he.__version__"}


def test_every_room_has_its_place():
    rooms = {room(name_of(path)) for path in FILES if name_of(path) != "ihc2he"}
    assert rooms <= LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path):
    own = name_of(path)
    if own == "ihc2he" or room(own) not in LEVEL:
        return
    level = LEVEL[room(own)]
    wrong = [found for found in imports(path) if LEVEL.get(room(found), 99) > level]
    assert not wrong, f"{own} imports {wrong}, which lie above it"


def test_models_never_import_data():
    for path in (PACKAGE / "models").rglob("*.py"):
        assert not [found for found in imports(path) if room(found) == "data"], path


def own_names() -> set[str]:
    """Return the private names of this package: of functions, classes, fields, and attributes of its objects."""
    found = set()
    for path in FILES:
        if "internals" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id in OWN else set()
    return found - FOREIGN


def private_parts(path: Path, own: set[str]) -> list[str]:
    """Return the uses of private names of other libraries in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found.append(f"{path.name}:{node.lineno} .{node.attr}")
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("ihc2he"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"{path.name}:{node.lineno} {name}" for name in names if is_private(name)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            named = [
                arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
            found += [f"{path.name}:{node.lineno} {name}" for name in named if is_private(name)]
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


PUBLIC = {"_asdict", "_replace", "_fields", "_make", "_exit"}  # of named tuples and os: documented, whatever their name


@pytest.fixture(scope="module")
def names_of_ours():
    return own_names()


@pytest.mark.parametrize("path", [path for path in FILES if "internals" not in path.parts], ids=name_of)
def test_private_parts_of_other_libraries_are_used_in_internals_alone(path, names_of_ours):
    assert private_parts(path, names_of_ours) == []
