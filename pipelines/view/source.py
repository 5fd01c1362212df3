"""What the page shows: clips of a corpus, of latents or of a folder of samples, and previews.

A preview is one small video of six panels, ``blended | foreground | alpha`` over ``background |
difference | recomposed``, and below them the colour and alpha of each object where a foreground is
made of several, so that the layers of a clip cannot run apart while it plays. A still's preview is
one picture.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    LAYERS,
    PROMPTED,
    U8,
    LayeredClip,
)
from layerflow.corpus.columns import COLUMNS
from layerflow.corpus.published import open_corpus
from layerflow.corpus.row_stack import single_objects, stack_of_row
from layerflow.corpus.stats import read_batches, small_rows
from layerflow.corpus.table import decode_row
from layerflow.documents import read_json
from layerflow.layer_set import MAX_FOREGROUNDS, layer_set, matte_of
from layerflow.locations import clean_uri
from layerflow.media.cells import MediaError, decode_alpha, decode_color, encode_preview
from layerflow.media.layer_stack import LayerStack
from layerflow.media.sample_files import read_objects, with_objects
from layerflow.media.sandbox import Handler
from layerflow.media.video import read_frames
from pipelines.view.clips import ClipSource as ClipSource
from pipelines.view.clips import difference

PANELS = (BLENDED, FOREGROUND, ALPHA, BACKGROUND, "difference", "recomposed")
MOST = layer_set(f"rgbax{MAX_FOREGROUNDS}")
BLOCK = 16  # H.264 macroblock: panels that start on one do not bleed into each other


@dataclass(frozen=True)
class Preview:
    """media: MP4 or JPEG of cells of ``cell`` (height, width) pixels, three in a row, each with a
    panel of ``panel`` (height, width) pixels in its top left corner; panels: their names."""

    media: bytes
    mime: str
    panel: tuple[int, int]
    cell: tuple[int, int]
    fps: float
    frames: int
    panels: tuple[str, ...] = PANELS

    def plain(self) -> dict[str, Any]:
        """Everything but the media, as JSON values."""
        about = asdict(self)
        del about["media"]
        return about


def open_source(
    path: Path | str, model: Path | None = None, against: Path | None = None
) -> ClipSource:
    """A corpus, a published one, latents, or a folder of samples; a URL of a corpus.

    model: decodes latents. against: another of these, whose clips of the same ids are shown
    beside. Raises ValueError when the folder is none of these.
    """
    if against is not None:
        from pipelines.view.pair import PairSource

        return PairSource(open_source(path, model), open_source(against, model))
    if isinstance(path, str):
        return CorpusSource(path)
    if (path / "index.json").is_file() and (path / "fingerprint.json").is_file():
        from pipelines.view.latents import LatentSource

        return LatentSource(path, model)
    if model is not None:
        raise ValueError(f"{path} holds no latents for a model to decode")
    if path.is_dir() and SampleSource.folders(path):
        return SampleSource(path)
    try:
        return CorpusSource(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is no corpus ({error}), holds no latents (no index.json) and no samples "
            "(no <id>/blended.mp4)"
        ) from error


class CorpusSource:
    """The clips of a corpus, local or published; of a URL, by ranges of its files."""

    def __init__(self, path: Path | str) -> None:
        self._corpus = open_corpus(path)
        self.remote = isinstance(path, str)
        self.name = path.rstrip("/") if isinstance(path, str) else path.resolve().name

    def row(self, index: int) -> dict[str, Any]:
        """A whole row, with its media."""
        return dict(self._corpus.row(index))

    def __len__(self) -> int:
        return len(self._corpus)

    def rows(self) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(small_rows(self._corpus)):
            yield shown_row(row, index)

    def rejected(self) -> Iterator[dict[str, Any]]:
        if (table := self._corpus.rejected_table()) is not None:
            for batch in read_batches(table):
                for row in batch.to_pylist():
                    yield {**row, "quality": _scores(row["quality"])}

    def clip(self, index: int) -> LayeredClip:
        return decode_row(self._corpus.row(index))

    def stack(self, index: int) -> LayerStack | None:
        return stack_of(self._corpus.row(index))


def stack_of(row: dict[str, Any]) -> LayerStack | None:
    """The single foregrounds of a row, where it has several."""
    return stack_of_row(row, decode_row(row), MOST) if single_objects(row, MOST) else None


def shown_row(row: dict[str, Any], index: int) -> dict[str, Any]:
    """A corpus row without media as the page wants it: flat, only the scores that are known."""
    source = row["origin"]
    return {
        "index": index,
        "id": row["id"],
        "kind": row["kind"],
        "source": clean_uri(source["uri"]),
        "start": source["start"],
        "end": source["end"],
        "licence": source["licence"],
        "attribution": source["attribution"],
        "parents": source["parents"],
        "prompts": {layer: row[f"{layer}_prompt"] for layer in PROMPTED},
        **{name: row[name] for name in ("num_frames", "height", "width", "fps")},
        **{name: row[name] for name in ("alpha_kind", "background_kind", "recipe")},
        "more": {c.name: row[c.name] for c in COLUMNS if c.shown and row.get(c.name) is not None},
        "scores": _scores(row["quality"]),
    }


def _scores(quality: dict[str, float | None]) -> dict[str, float]:
    known = {name: value for name, value in quality.items() if value is not None}
    return {name: value for name, value in known.items() if math.isfinite(value)}


class SampleSource:
    """Generated clips: ``<id>/{foreground.mov, alpha.mkv, background.mp4, blended.mp4}``."""

    def __init__(self, path: Path) -> None:
        self._folders = self.folders(path)
        self.name = path.resolve().name

    @staticmethod
    def folders(path: Path) -> list[Path]:
        return sorted(p.parent for p in path.glob("*/blended.mp4") if not p.is_symlink())

    def __len__(self) -> int:
        return len(self._folders)

    def rows(self) -> Iterator[dict[str, Any]]:
        for index, folder in enumerate(self._folders):
            about = _about(folder)
            prompts = about["prompt"] if isinstance(about.get("prompt"), dict) else {}
            yield {
                "index": index,
                "id": folder.name,
                "kind": "sample",
                "source": _said(about),
                "prompts": {name: str(prompts.get(name, "")) for name in PROMPTED},
                "scores": {},
            }

    def rejected(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def stack(self, index: int) -> LayerStack | None:
        def read(path: Path) -> U8:
            if path.name.startswith(ALPHA):
                return decode_alpha(path.read_bytes())
            return read_frames(path)[0]

        objects = read_objects(self._folders[index], read)
        if not objects:
            return None
        clip = self.clip(index)
        layers = {name: clip.layer(name) for name in LAYERS}
        return with_objects(layers, objects, clip.fps)

    def clip(self, index: int) -> LayeredClip:
        folder = self._folders[index]
        if (folder / "foreground.mov").is_file():
            foreground, fps = read_frames(folder / "foreground.mov")
            alpha = decode_alpha((folder / "alpha.mkv").read_bytes())
        else:  # of a model without alpha
            foreground, fps = read_frames(folder / "foreground.mp4")
            alpha = np.full(foreground.shape[:3], 255, np.uint8)
        height, width = alpha.shape[1:]  # colour files of odd sizes are one pixel larger
        background, blended = (
            decode_color((folder / f"{name}.mp4").read_bytes())[:, :height, :width]
            for name in (BACKGROUND, BLENDED)
        )
        return LayeredClip(
            foreground=np.ascontiguousarray(foreground[:, :height, :width, :3]),
            alpha=alpha,
            background=background,
            blended=blended,
            fps=fps,
        )


def _about(folder: Path) -> dict[str, Any]:
    """What ``layerflow sample`` wrote about a sample; nothing when there is no such file."""
    try:
        return read_json(folder / "sample.json")
    except ValueError:
        return {}


def _said(about: dict[str, Any]) -> str:
    """The task, model and seed of a sample in one line."""
    given = about["given"] if isinstance(about.get("given"), dict) else {}
    named = [f"{layer} ({file})" for layer, file in given.items()]
    known = [f"{name} {about[name]}" for name in ("model", "seed", "steps") if name in about]
    return ", ".join(["given " + " and ".join(named) if named else "nothing given", *known])


def make_preview(
    clip: LayeredClip,
    height: int = 144,
    *,
    crf: int = 25,
    stack: LayerStack | None = None,
    more: dict[str, U8] | None = None,
) -> Preview:
    """The six panels of a clip, those of a stack's single foregrounds, and ``more`` of as many
    frames, each ``height`` pixels high (never enlarged)."""
    scale = min(1.0, height / clip.size[0], 4 * height / clip.size[1])
    panel = max(2, round(clip.size[0] * scale)), max(2, round(clip.size[1] * scale))
    cell = -(-panel[0] // BLOCK) * BLOCK, -(-panel[1] // BLOCK) * BLOCK
    recomposed = clip.recomposed()
    layers = {name: clip.layer(name) for name in PANELS[:4]}
    layers |= {"difference": difference(clip.blended, recomposed), "recomposed": recomposed}
    layers |= single_panels(stack) | (more or {})
    rows = -(-len(layers) // 3)
    frames = np.zeros((clip.num_frames, rows * cell[0], 3 * cell[1], 3), np.uint8)
    for place, name in enumerate(layers):
        y, x = place // 3 * cell[0], place % 3 * cell[1]
        frames[:, y : y + cell[0], x : x + cell[1]] = _cells(layers[name], panel, cell)
    if clip.num_frames == 1:
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        ok, data = cv2.imencode(".jpg", cv2.cvtColor(frames[0], cv2.COLOR_RGB2BGR), quality)
        if not ok:
            raise MediaError("the preview could not be encoded")
        return Preview(bytes(data), "image/jpeg", panel, cell, clip.fps, 1, tuple(layers))
    media = encode_preview(frames, clip.fps, crf=crf)
    return Preview(media, "video/mp4", panel, cell, clip.fps, clip.num_frames, tuple(layers))


def single_panels(stack: LayerStack | None) -> dict[str, U8]:
    """Panels of each layer over the background with its matte: ``object 1`` is the hindmost."""
    panels: dict[str, U8] = {}
    for name in stack.over if stack is not None else ():
        assert stack is not None
        place = name.partition(".")[2] or "1"
        shown = f"object {place}" if name.startswith(FOREGROUND) else name
        panels[shown] = stack.layer(name)
        panels[f"{ALPHA} of {shown}"] = stack.layer(matte_of(name))
    return panels


def _cells(frames: U8, panel: tuple[int, int], cell: tuple[int, int]) -> U8:
    out = np.empty((len(frames), *cell, 3), np.uint8)
    for t, frame in enumerate(frames):
        small = cv2.resize(frame, panel[::-1], interpolation=cv2.INTER_AREA)
        colour = small if small.ndim == 3 else np.repeat(small[..., None], 3, axis=2)
        pad = ((0, cell[0] - panel[0]), (0, cell[1] - panel[1]), (0, 0))
        out[t] = np.pad(colour, pad, mode="edge")
    return out


def previewer(
    path: Path, model: Path | None = None, against: Path | None = None
) -> Callable[[bytes], bytes]:
    """A handler for ``layerflow.media.sandbox``: what ``Requests`` has in, a preview out."""
    source = open_source(path, model, against)

    def answer(request: bytes) -> bytes:
        wanted = json.loads(request)
        index, height = wanted["index"], wanted["height"]
        if against is not None:
            more = source.panels(index)  # type: ignore[attr-defined]
            return _answer(make_preview(source.clip(index), height, more=more))
        return _answer(make_preview(source.clip(index), height, stack=source.stack(index)))

    return answer


def row_previewer(path: Path) -> Callable[[bytes], bytes]:
    """The same for rows that were read elsewhere, and come with the request."""

    def answer(request: bytes) -> bytes:
        row, height = pickle.loads(request)  # from the parent: trusted
        return _answer(make_preview(decode_row(row), height, stack=stack_of(row)))

    return answer


def preview_handler(
    path: Path | str, model: Path | None = None, against: Path | None = None
) -> Handler:
    """The handler of what ``open_source`` opens."""
    if isinstance(path, str):
        return row_previewer
    return partial(previewer, model=model, against=against)


class Requests(Sequence[bytes]):
    """Requests for previews of some clips, each made when it is taken: of a corpus that lies
    elsewhere it holds the row, since the child that decodes it reads nothing there."""

    def __init__(self, source: ClipSource, chosen: Sequence[int], height: int) -> None:
        self._source, self._chosen, self._height = source, chosen, height

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: Any) -> Any:
        index = self._chosen[place]
        if isinstance(self._source, CorpusSource) and self._source.remote:
            return pickle.dumps((self._source.row(index), self._height))
        return json.dumps({"index": index, "height": self._height}).encode()


def _answer(preview: Preview) -> bytes:
    return json.dumps(preview.plain()).encode() + b"\n" + preview.media


def read_preview(answer: bytes) -> Preview:
    """The answer of ``previewer`` as a Preview."""
    head, _, media = answer.partition(b"\n")
    about = json.loads(head)
    about |= {name: tuple(about[name]) for name in ("panel", "cell", "panels")}
    return Preview(media, **about)
