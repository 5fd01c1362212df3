"""A torchvision whose operators do not match torch must not break anybody."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

BROKEN = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0)
value = 7
"""


def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    prefix = f"import sys; sys.path.insert(0, {str(path)!r})\n" if path else ""
    return subprocess.run(
        [sys.executable, "-c", prefix + textwrap.dedent(code)], capture_output=True, text=True
    )


def test_a_torchvision_without_its_operators_imports_after_layerflow(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN)
    plain = run("import torchvision", tmp_path)
    assert "torchvision::nms" in plain.stderr
    guarded = run("import layerflow, torchvision; print(torchvision.value)", tmp_path)
    assert guarded.stdout.strip() == "7", guarded.stderr


def test_a_healthy_torchvision_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("value = 8\n")
    code = """
        import layerflow
        from layerflow import compat
        import torchvision
        print(torchvision.value, compat.ensure_torchvision())
    """
    assert run(code, tmp_path).stdout.split() == ["8", "native"]


def test_other_errors_of_torchvision_are_not_hidden(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('something else')\n")
    assert "something else" in run("import layerflow, torchvision", tmp_path).stderr


def test_importing_layerflow_is_light() -> None:
    code = "import layerflow, sys; print('torch' in sys.modules, 'torchvision' in sys.modules)"
    assert run(code).stdout.split() == ["False", "False"]
