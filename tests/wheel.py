"""The wheel in an environment of its own, outside this tree: ``make test-wheel``.

    python tests/wheel.py [--python python3.12] [--extras matting,hub,psd,s3] [--keep FOLDER]

Builds the wheel, installs it with its extras and **without** constraints, as a user does who only
knows its name, and runs one small command of each kind there. The environment has the tree's
Python unless said otherwise. Fails when a command does, or when what was imported lies in the tree.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.small_demo import write_small_demo  # noqa: E402

COMMANDS = (
    "--help",
    "doctor",
    "weights list",
    "demo --manifest demo.yaml --out demo --workers 1 --quiet",
    "new corpus corpus.yaml --videos demo/media/videos",
    "validate demo/corpora/mined",
    "stats demo/corpora/pasted",
    "filter demo/corpora/pasted --kind pasted --out few",
    "export demo/corpora/stills --out shards --quiet",
    "pack shards --out back --workers 0 --quiet",
    "publish demo/corpora/stills me/stills --dry-run hub --quiet",
    "init model --preset tiny --layers rgb",
    "info model",
    "runs demo",
    "sample --model demo/train/export --out sample --size 32x32 --frames 4 --steps 2",
)
WHERE = "import cv2, layerflow, torch, transformers; print(layerflow.__file__, torch.__version__)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--extras", default="matting,hub,psd,s3")
    parser.add_argument("--keep", type=Path, help="make everything here, and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerflow-wheel-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        python = install(folder, options.python, options.extras)
        place, torch = run([python, "-c", WHERE], folder).split()
        if not Path(place).is_relative_to(folder):
            raise SystemExit(f"{place} was imported: not what was installed")
        print(f"torch {torch}, {run([python, '--version'], folder).strip()}", flush=True)
        write_small_demo(Path(place).parents[1] / "manifests", folder)
        for command in COMMANDS:
            started = time.perf_counter()
            run([python.with_name("layerflow"), *command.split()], folder)
            print(f"{time.perf_counter() - started:6.1f} s  layerflow {command}", flush=True)


def install(folder: Path, python: str, extras: str) -> Path:
    """A fresh environment with the wheel; returns its Python."""
    build = ["wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheels", ROOT]
    run([sys.executable, "-m", "pip", *build], ROOT)
    wheel = next((folder / "wheels").glob("*.whl"))
    run([python, "-m", "venv", folder / "venv"], folder)
    inside = folder / "venv" / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, f"{wheel}[{extras}]"], folder)
    if "matting" in extras:  # see docs/dependencies.md: two OpenCV builds
        run([*pip, "--no-deps", "--force-reinstall", "opencv-python-headless"], folder)
    return inside


def run(command: list[object], folder: Path) -> str:
    """What a command prints. SystemExit with its last words when it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise SystemExit(f"{' '.join(map(str, command))} ends with {done.returncode}:\n{said}")
    return done.stdout


if __name__ == "__main__":
    main()
