"""Imports run one way only: layerflow knows nobody, Ray stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

FORBIDDEN = {
    "layerflow": {"pipelines", "trainer", "manifests", "ray"},
    "manifests": {"pipelines", "trainer", "layerflow", "ray"},
    "pipelines": {"trainer"},
    "trainer": {"pipelines"},
}
LAYER_NAMES = {"layerflow.clip", "layerflow.model.layers"}
"""All that manifests take from below: the layers and tasks that a manifest may name."""
DOORS = {("layerflow", "cli"), ("layerflow", "front.py")}
WITH_RAY = {"launch.py", "board.py"}  # of the trainer
RAY_START = Path("layerflow/ray_start.py")  # for jobs and runs alike; inside functions only


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, node.lineno


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_import_downwards_only(package: str) -> None:
    wrong = []
    for path in modules(package):
        relative = path.relative_to(ROOT)
        if relative.parts[:2] in DOORS:
            continue
        for name, line in imported(path):
            top = name.split(".")[0]
            if top == "ray" and relative == RAY_START:
                continue
            if top in FORBIDDEN[package] and not (package == "manifests" and name in LAYER_NAMES):
                wrong.append(f"{relative}:{line} imports {name}")
            if top == "ray" and package == "trainer" and path.name not in WITH_RAY:
                wrong.append(f"{relative}:{line} imports ray")
            if f"{name}.".startswith("layerflow.cli."):
                wrong.append(f"{relative}:{line} imports the command line")
    assert wrong == []


def test_ray_is_started_in_one_place_and_imported_inside_functions() -> None:
    at_top, starts = [], []
    for path in (path for package in FORBIDDEN for path in modules(package)):
        tree, relative = ast.parse(path.read_text()), path.relative_to(ROOT)
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            at_top += [str(relative) for name in names if name.split(".")[0] == "ray"]
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if "ray.init" in map(ast.unparse, calls):
            starts.append(relative)
    assert at_top == [] and starts == [RAY_START]


def test_the_command_line_imports_lazily() -> None:
    heavy = ("torch", "ray", "pyarrow", "cv2", "datasets", "diffusers", "transformers")
    code = (
        "import sys; from layerflow.cli.main import build_app; build_app(); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_model_loop_and_step_bench_import_without_ray_datasets_and_media() -> None:
    absent = ("ray", "datasets", "pyarrow", "pandas", "cv2", "av")
    code = (
        "import sys\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        "import layerflow.model.transformer, layerflow.model.objective, layerflow.model.adapters\n"
        "import trainer.loop\n"
        "import bench.train_gpu\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_layer_is_named_in_one_place() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in FORBIDDEN
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("foreground", "blended")
    }
    assert found == {"layerflow/clip.py"}


def test_files_are_short_enough_to_read() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in FORBIDDEN
        for path in modules(package)
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_no_folder_is_crowded() -> None:
    crowded = {}
    for package in (*FORBIDDEN, "bench"):
        for folder in {path.parent for path in modules(package)}:
            count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
            if count > 20:
                crowded[str(folder.relative_to(ROOT))] = count
    assert crowded == {}


def graph() -> dict[str, set[str]]:
    """Each module and the modules that it imports, also inside functions; not those of types."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in FORBIDDEN
        for path in modules(package)
    }
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        for node in list(ast.walk(tree)):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                node.body = []
        found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in names:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (whole & set(names)) or {node.module}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & set(names)
    return found


def test_no_imports_run_in_a_circle() -> None:
    left = graph()
    while free := {name for name, needs in left.items() if not (needs - {name}) & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert sorted(left) == []
