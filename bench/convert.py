"""Convert a full-size official state dict of random weights and say what it takes.

    python bench/convert.py [FOLDER] [--task gen_rgba]

Writes the file of a LayerFlow checkpoint of CogVideoX-2B's size (float16, 30 blocks of width 1920,
motion LoRA of rank 8 and content LoRA of rank 256 in every sixth block, a text encoder that must
be skipped) into FOLDER or a temporary one, converts it in a process of its own, and prints sizes,
seconds and the most memory that process ever held, to be at most 1.3 times the output's size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
BOUND = 1.3
SIZES = {
    **{"DIM": 1920, "HEADS": 30, "HEAD": 64, "LAYERS": 30, "TIME": 512, "TEXT": 4096},
    **{"HEIGHT": 60, "WIDTH": 90, "TOKENS": 1350, "MOTION": 8, "CONTENT": 256},
}


def write_checkpoint(folder: Path, task: str) -> Path:
    """The states file; one tensor at a time is float32."""
    sys.path.insert(0, str(ROOT))
    from tests.support import official_reference as reference

    for name, value in SIZES.items():
        setattr(reference, name, value)
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, shape in reference.weight_shapes(task).items():
        value = torch.empty(shape, dtype=torch.float16).normal_(0, 0.02)
        block = key.split(".")[2] if key.startswith("transformer.layers.") else "5"
        if key.endswith(("matrix_B", "matrix_D")) or "matrix_B." in key or "matrix_D." in key:
            value *= int(block) % 6 == 5
        weights[reference.PREFIX + key] = value
    embedding = torch.zeros(32128, 4096, dtype=torch.float16)
    weights["conditioner.embedders.0.transformer.shared.weight"] = embedding
    path = folder / task / "1000" / "mp_rank_00_model_states.pt"
    path.parent.mkdir(parents=True)
    torch.save({"module": weights, "iteration": 1000}, path)
    return path


def convert(path: Path, out: Path, task: str) -> None:
    """In a process of its own: prints seconds and kilobytes."""
    from layerflow.official.convert import convert_checkpoint

    start = time.monotonic()
    convert_checkpoint(path, out, task=task)
    seconds = time.monotonic() - start
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    print(seconds, next(line.split()[1] for line in status if line.startswith("VmHWM")))


def size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def run(folder: Path, task: str) -> None:
    path = write_checkpoint(folder, task)
    command = [sys.executable, __file__, str(path), "--convert", str(folder / "out")]
    done = subprocess.run(
        [*command, "--task", task], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, kilobytes = (float(word) for word in done.stdout.split()[-2:])
    written = size(folder / "out")
    share = kilobytes * 1024 / written
    print(f"in {size(path) / 1e9:.2f} GB, out {written / 1e9:.2f} GB, {seconds:.1f} s")
    print(f"resident at most {kilobytes * 1024 / 1e9:.2f} GB: {share:.2f} of the output")
    if share > BOUND:
        raise SystemExit(f"over the bound of {BOUND}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="12 GB free; default: a temporary one")
    parser.add_argument("--task", default="gen_rgba")
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        convert(options.folder, options.convert, options.task)
    elif options.folder:
        run(options.folder, options.task)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), options.task)


if __name__ == "__main__":
    main()
