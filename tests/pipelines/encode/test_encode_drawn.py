"""Encode of clips that are drawn for it: what a stored corpus has before coding, and no media."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from layerflow import front
from layerflow.corpus.latents import Latents
from layerflow.corpus.table import Corpus, decode_row
from layerflow.media.cells import encode_png
from layerflow.model.presets import init_directory
from pipelines.encode import drawn as module
from pipelines.encode.clip_latents import Encoder
from pipelines.paste import rows as coding
from tests.support.pasted import backdrops, run, stills, write

HOW: dict[str, Any] = {"workers": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_directory(tmp_path_factory.mktemp("tiny") / "model", "tiny")


def manifest(folder: Path, **more: Any) -> Path:
    said = {
        "job": "paste",
        "foregrounds": [str(stills(folder / "fg"))],
        "backgrounds": [str(backdrops(folder / "bg"))],
        "out": str(folder / "unused"),
        "count": 6,
        "seed": 3,
        "size": "48x64",
        "frames": 4,
        "fps": 8.0,
    }
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump({"jobs": [said | more]}))
    return path


@pytest.mark.parametrize("layers", ["rgba", "rgbax2+effects"])
def test_drawn_samples_are_bit_for_bit_what_a_corpus_would_code(
    layers: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``paste`` hands to its coder is caught there; what goes into the autoencoder here."""
    more: dict[str, Any] = {"shadow": "background", "objects": [1, 2], "area": [0.05, 0.15]}
    path = manifest(tmp_path, **more)
    clips: list[Any] = []
    singles: list[Any] = []
    plates: list[Any] = []
    seen: dict[str, Any] = {}
    row_of, objects_of, cell_of = coding.encode_row, coding.encode_objects, coding.encode_color
    rows_of = Encoder.rows

    def see_row(clip: Any, **rest: Any) -> Any:
        clips.append(clip)
        return row_of(clip, **rest)

    def see_objects(objects: Any, *rest: Any, **named: Any) -> Any:
        singles.append(list(objects))
        return objects_of(objects, *rest, **named)

    def see_plate(frames: Any, *rest: Any, **named: Any) -> Any:
        plates.append(frames)
        return cell_of(frames, *rest, **named)

    def see_pictures(self: Any, row: Any, about: Any, pictures: Any, masks: Any) -> Any:
        if pictures[0].fps == 4.0 and "content" in row:
            seen[row["id"]] = pictures
        return rows_of(self, row, about, pictures, masks)

    monkeypatch.setattr(coding, "encode_row", see_row)
    monkeypatch.setattr(coding, "encode_objects", see_objects)
    monkeypatch.setattr(coding, "encode_color", see_plate)
    monkeypatch.setattr(Encoder, "rows", see_pictures)
    more |= {"objects": (1, 2), "area": (0.05, 0.15), "encoded_check": 0, "count": 5}
    corpus = run(tmp_path, tmp_path / "fg", tmp_path / "bg", **more)
    path.write_text(path.read_text().replace("  count: 6", "  count: 5\n  encoded_check: 0"))
    out = tmp_path / "l"
    size: dict[str, Any] = {"frames": 2, "flip": True, "layers": layers}
    said = front.encode([], model, out, paste=path, **size, **HOW)
    assert not (tmp_path / "unused").exists()
    assert said.encoded == len(corpus) == 5 and len(seen) == 5
    shadowed = iter(plates)
    several = 0
    for index, clip in enumerate(clips):
        row = corpus.row(index)
        plain, mirrored = seen[row["id"]]
        plate = next(shadowed) if row["shadow"] == "background" else clip.background
        behind = plate if layers != "rgba" else clip.background
        wanted = {"background": behind, "blended": clip.blended}
        if layers == "rgba" or len(singles[index]) < 2:
            wanted |= {"foreground": clip.foreground, "alpha": clip.alpha}
        else:
            several += 1
            for suffix, item in zip(("", ".2"), singles[index], strict=True):
                wanted |= {f"foreground{suffix}": item.colour, f"alpha{suffix}": item.amodal}
        for name, frames in wanted.items():
            assert np.array_equal(plain.frames[name], frames[[1, 3]]), name
            assert np.array_equal(mirrored.frames[name], frames[[1, 3], :, ::-1]), name
        assert np.array_equal(decode_row(row).alpha, clip.alpha)  # which is stored without loss
    assert layers == "rgba" or several
    stored = front.encode(corpus.path, model, tmp_path / "stored", **size, **HOW)
    assert (stored.clips, stored.prompts) == (said.clips, said.prompts)
    ours, theirs = Latents.open(out), Latents.open(tmp_path / "stored")
    prompts = [f"{layer}_prompt" for layer in ours.layers.prompted]
    for name in ("id", "source", "kind", "alpha_kind", "origin_group", "fps", *prompts):
        assert ours.column(name) == theirs.column(name), name
    near = ours.item(0)["moments"][:, :16] - theirs.item(0)["moments"][:, :16]
    assert 0 < np.abs(near).mean() < 0.1  # all that is between them is the codec


def test_drawn_latents_are_made_once_and_others_are_refused(model: Path, tmp_path: Path) -> None:
    path, out = manifest(tmp_path), tmp_path / "l"
    first = front.encode([], model, out, paste=path, count=3, **HOW)
    again = front.encode([], model, out, paste=path, count=3, **HOW)
    assert (first.encoded, again.encoded, again.clips) == (3, 0, 3)
    with pytest.raises(ValueError, match=r"holds 3 clips of other draws \(seed 3\)"):
        front.encode([], model, out, paste=path, count=3, seed=4, **HOW)
    other = front.encode([], model, tmp_path / "more", paste=path, count=3, seed=4, **HOW)
    ids = [set(Latents.open(folder).column("id")) for folder in (out, other.out)]
    assert len(ids[0] | ids[1]) == 6
    lines = (out / module.ORIGINS).read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == ids[0]
    assert all(len(json.loads(line)["origin"]["parents"]) == 2 for line in lines)
    with pytest.raises(ValueError, match="not both"):
        front.encode("corpus", model, out, paste=path)
    with pytest.raises(ValueError, match="wants corpora, or --paste"):
        front.encode([], model, out, count=3)


def test_near_repeats_are_left_out_as_of_a_corpus(model: Path, tmp_path: Path) -> None:
    """An object that fills its clip over an even wall: there is hardly anything to vary."""
    y, x = np.indices((96, 128)) - np.array([[[47.5]], [[63.5]]])
    oval = np.full((96, 128, 4), 120, np.uint8)
    oval[..., 3] = np.where(np.hypot(x / 60, y / 44) < 1, 255, 0)
    fixed = ("speed", 0.01), ("area", 0.6), ("harmonise", 0.0)
    path = manifest(
        tmp_path,
        foregrounds=[str(write(tmp_path / "one/oval.png", encode_png(oval)).parent)],
        backgrounds=[str(write(tmp_path / "wall/w.png", encode_png(oval[..., :3])).parent)],
        placement="ground",
        area_limits=[0.0, 1.0],
        turn=0.0,
        zoom=0.0,
        **{name: [value, value] for name, value in fixed},
    )
    options = module.paste_options(path).model_copy(update={"out": str(tmp_path / "c")})
    summary = front.run_job(options, workers=0, quiet=True)
    said = front.encode([], model, tmp_path / "l", paste=path, **HOW)
    repeats = [reason for _, reason in said.rejected if "nearly the same as clip" in reason]
    assert repeats and (said.clips, len(said.rejected)) == (summary.kept, summary.rejected)
    kept = [row["id"] for row in Corpus.open(tmp_path / "c").rows()]
    assert Latents.open(tmp_path / "l").column("id") == kept
