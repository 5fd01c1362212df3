"""``layerflow doctor``: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import typer

GIB = 1 << 30
CODECS = {
    "libx264": "colour layers of corpora",
    "ffv1": "alpha layers of corpora",
    "prores_ks": "layers for video editors (sample)",
    "libvpx-vp9": "layers for browsers (sample)",
}
EXTRAS = {
    "rembg": ("matting", "the matting backend rembg"),
    "transparent-background": ("matting", "the matting backend transparent-background"),
    "huggingface_hub": ("hub", "publish"),
    "psd-tools": ("psd", "pack of PSD files"),
    "s3fs": ("s3", "inputs at s3://"),
    "bitsandbytes": ("8bit", "8-bit AdamW"),
    "prodigyopt": ("prodigy", "the optimizer Prodigy"),
}
MIN_FREE = 10 * GIB
MIN_SHARED_MEMORY = 2 * GIB


class Finding(NamedTuple):
    """One line of the report. state: ``ok``, ``note`` (works, or is optional) or ``bad``."""

    state: str
    what: str
    text: str


def doctor() -> None:
    """Check this machine: packages, GPU, codecs, Ray, disk. Status 1 if something is broken."""
    worst = 0
    for check in CHECKS:
        try:
            findings = list(check())
        except Exception as error:  # the check itself is what is broken
            name = check.__name__.removeprefix("_")
            findings = [Finding("bad", name, f"{type(error).__name__}: {error}")]
        for state, what, text in findings:
            worst |= state == "bad"
            print(f"{state:>4}  {what:<22} {text}")
    raise typer.Exit(worst)


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    text = version if fits else f"{version}; 3.11 to 3.13 are supported"
    yield Finding("ok" if fits else "note", "Python", text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    load = os.getloadavg()[0]
    busy = load > 1.5 * (cores or 1)
    text = f"{cores} cores, {memory:.0f} GiB of memory, load {load:.1f}"
    yield Finding("note" if busy else "ok", "machine", text + (": busy with other work" * busy))


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding(
        "ok", "torch", f"{torch.__version__}, CPU kernels {torch.backends.cpu.get_cpu_capability()}"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if facts.major >= 8 else "no bf16: train with precision fp32"
            memory = facts.total_memory / GIB
            yield Finding("ok", f"GPU {index}", f"{facts.name}, {memory:.0f} GiB, {bf16}")
        yield Finding("ok", "GPU use", "train takes it by itself; mine: --device cuda")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "bad",
            "GPU",
            "there is one, but this torch cannot use it; install the CUDA build: "
            "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130",
        )
    else:
        text = "none: everything runs; training and networks at 480x720 are slow"
        yield Finding("note", "GPU", text)


def _packages() -> Iterator[Finding]:
    for name in ("diffusers", "peft", "transformers", "datasets", "pyarrow", "ray"):
        yield Finding("ok", name, importlib.metadata.version(name))
    import cv2

    yield Finding("ok", "OpenCV", cv2.__version__)
    for name, (extra, use) in EXTRAS.items():
        try:
            yield Finding("ok", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            how = f"pip install 'layerflow-toolkit[{extra}]'"
            yield Finding("note", name, f"not installed; for {use}: {how}")


def _weights() -> Iterator[Finding]:
    from layerflow import weights

    for entry in weights.REGISTRY:
        path = weights.path_of(entry)
        advice = f"not here; for --matting auto: layerflow weights get {entry.name}"
        yield Finding("ok" if path else "note", f"weights {entry.name}", str(path or advice))


def _codecs() -> Iterator[Finding]:
    import av

    for name, use in CODECS.items():
        there = name in av.codecs_available
        needed = "of corpora" in use
        state = "ok" if there else "bad" if needed else "note"
        yield Finding(state, name, f"for {use}" if there else f"missing: no {use}")


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    text = f"jobs go to the cluster at {address}" if address else "jobs use this machine's CPUs"
    yield Finding("ok", "Ray", text)
    memory = Path("/dev/shm")
    if memory.is_dir():
        free = shutil.disk_usage(memory).free
        small = free < MIN_SHARED_MEMORY
        advice = ": small; in a container give it more (--shm-size=4g), or --workers 0" * small
        yield Finding("note" if small else "ok", "/dev/shm", f"{free / GIB:.1f} GiB free{advice}")


def _disk() -> Iterator[Finding]:
    for what, folder in (("this folder", Path.cwd()), ("temporary files", tempfile.gettempdir())):
        free = shutil.disk_usage(folder).free
        low = free < MIN_FREE
        text = f"{free / GIB:.0f} GiB free in {folder}"
        advice = "; set TMPDIR to a larger disk" if what == "temporary files" else ""
        yield Finding("note" if low else "ok", what, text + (": little" + advice if low else ""))
    with tempfile.TemporaryFile(dir=Path.cwd()):
        pass


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _machine,
    _torch,
    _packages,
    _weights,
    _codecs,
    _ray,
    _disk,
)
COMMANDS = (doctor,)
