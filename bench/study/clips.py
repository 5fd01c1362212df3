"""The latents and the measured clips of the study, from its media; all seeds share them.

OUT/media/            the subjects and films by their part
OUT/latents/video     moving clips, coarse mattes
OUT/latents/small     the same, small and short
OUT/latents/invented  the same with a made-up background where the subject hides it, and its mask
OUT/latents/stills    layered stills of other subjects, true mattes
OUT/corpora/          clips to measure with (`PARTS`)
OUT/latents/fresh     those of known subjects, for the losses
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.study import sources
from layerflow import front
from layerflow.clip import ALPHA, BACKGROUND, LAYERS, U8
from layerflow.corpus.latents import LatentsWriter
from layerflow.media.known import latent_known, pack_known
from layerflow.media.layer_stack import LayerStack
from layerflow.model.presets import init_directory
from manifests.common import check
from manifests.paste import PasteOptions
from pipelines.encode import job
from pipelines.encode.clip_latents import Augment, Encoder, Options
from pipelines.encode.drawn import drawn, run_encode_drawn
from pipelines.engine.recipe import unit_key
from pipelines.paste.job import draw_unit, recipe_of
from pipelines.paste.plan import make_plan
from pipelines.paste.sample import PasteContext
from pipelines.vision.numerics import dilate

PARTS = {
    "fresh": ("video", "films"),
    "fresh_soft": ("stills", "films"),
    "held_out": ("held_out", "films_held_out"),
    "held_out_soft": ("held_out_soft", "films_held_out"),
}
"""Clips that no training sees: part -> its subjects and films. `fresh` are of known subjects over
known films, `fresh_soft` of subjects that training has in stills only; they move here. The others
are of subjects and films that it has nowhere."""
REACH = 2  # pixels around a subject that are made up with what it hides


def prepare(out: Path, media: Path, study: Mapping[str, Any]) -> None:
    """Make what is not there yet."""
    folders = gather(out / "media", media, study["media"])
    model = out / "autoencoder"
    if not model.is_dir():
        init_directory(model, "tiny-wan", **study["model"])
    counts, paste = study["clips"]["counts"], study["clips"]["paste"]
    for seed, (part, (subjects, films)) in enumerate(PARTS.items()):
        said = options(study, folders[subjects], folders[films], counts["measured"], 100 + seed)
        said = said.model_copy(update={"out": str(out / "corpora" / part)})
        front.run_job(said, workers=0, quiet=True)
    fresh = out / "corpora" / "fresh"
    front.encode(fresh, model, out / "latents" / "fresh", dtype="float16", workers=0)
    common: dict[str, Any] = {"model": model, "dtype": "float16", "workers": 0, "quiet": True}
    video = options(study, folders["video-coarse"], folders["films"], counts["video"], 0)
    run_encode_drawn(video, out=out / "latents" / "video", **common)
    fewer = {**study, "clips": {**study["clips"], "paste": {**paste, **study["clips"]["small"]}}}
    small = options(fewer, folders["video-coarse"], folders["films"], counts["small"], 2)
    run_encode_drawn(small, out=out / "latents" / "small", **common)
    stills = options(study, folders["stills"], folders["films"], counts["stills"], 1)
    run_encode_drawn(stills, out=out / "latents" / "stills", augment=Augment(freeze=1), **common)
    if not (out / "latents" / "invented").is_dir():
        write_invented(out / "latents" / "invented", video, model)


def gather(out: Path, media: Path, said: Mapping[str, Any]) -> dict[str, Path]:
    """Part -> its folder; made once."""
    names = ("video", "stills", "held_out", "held_out_soft", "films", "films_held_out")
    done = out / "done.json"
    if not done.is_file():
        copies = {"video": said["recoloured"], "stills": said["recoloured"]}
        for name in names:
            sources.gather(media, name, said[name], out, copies.get(name, 0))
        sources.coarse(out / "video")
        done.write_text(json.dumps(said))
    return {name: out / name for name in (*names, "video-coarse")}


def options(
    study: Mapping[str, Any], subjects: Path, films: Path, count: int, seed: int
) -> PasteOptions:
    said = {
        **study["clips"]["paste"],
        "foregrounds": [str(subjects)],
        "backgrounds": [str(films)],
        "out": "",
        "count": count,
        "seed": seed,
    }
    return check(said, PasteOptions, "study.yaml: clips.paste")


def write_invented(out: Path, paste: PasteOptions, model: Path) -> None:
    """The latents of ``paste``'s clips with backgrounds as a miner has them that saw one frame."""
    recipe = recipe_of(paste)
    context = PasteContext(make_plan(paste), paste, recipe.hash)
    chosen = Options(str(model.resolve()), None, None, "float16", Augment(), "rgba")
    encoder = Encoder(chosen)
    cells = encoder.cell
    texts: dict[str, None] = {}

    def rows() -> Iterator[dict[str, Any]]:
        lost: list[dict[str, Any]] = []
        for sample in draw_unit({"start": 0, "stop": paste.count}, context, lost):
            row, (stack,) = drawn(sample, chosen)
            texts.update(dict.fromkeys(text for text in row["prompts"] if text))
            row["content"] = unit_key(row["content"], "invented")
            made, known = invented(stack)
            yield from encoder.rows(row, row, [made], [latent_known(known, LAYERS, *cells)])

    with LatentsWriter(out, job.make_fingerprint(chosen)) as writer:
        writer.clips(rows())
        writer.prompts(encoder.prompts(list(texts)))


def invented(stack: LayerStack) -> tuple[LayerStack, U8]:
    """A clip whose background is inpainted, frame by frame, where the subject stands before it, and
    what of it is known."""
    frames, holes = dict(stack.frames), []
    pictures = []
    for picture, alpha in zip(frames[BACKGROUND], frames[ALPHA], strict=True):
        hole = dilate(alpha > 0, REACH)
        made = cv2.inpaint(np.ascontiguousarray(picture), hole.astype(np.uint8), 3, cv2.INPAINT_NS)
        pictures.append(made)
        holes.append(hole)
    frames[BACKGROUND] = np.stack(pictures)
    seen = ~np.stack(holes)
    return replace(stack, frames=frames), pack_known(seen, np.ones_like(seen))
