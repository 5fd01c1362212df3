"""The inpainter on a network for video, with a tiny random Wan VACE."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.vision import wan_vace
from pipelines.vision.inpaint import Hole, make_inpainter
from pipelines.vision.plate import clean_plate
from pipelines.vision.wan_vace import WanVaceInpainter
from tests.support.matting_clips import moving_disc, texture
from tests.support.tiny_vace import write_vace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vace(tmp_path_factory.mktemp("vace") / "tiny")


def clip(count: int, height: int, width: int) -> list[Hole]:
    """A texture that drifts, with a square hole in all frames but the first."""
    scenery = texture(height, width + count, 3, (120, 100, 80))
    holes = []
    for t in range(count):
        where = np.zeros((height, width), bool)
        where[8:20, 10 : 24 if t else 10] = True
        picture = scenery[:, t : t + width].copy()
        picture[where] = 255
        holes.append(Hole(picture, where, (slice(0, height), slice(0, width))))
    return holes


def test_only_holes_change_at_any_size_and_every_run_says_the_same(folder: Path) -> None:
    """6 frames of 36x52: filled up to 9 frames of 48x64 for the network."""
    holes = clip(6, 36, 52)
    found = WanVaceInpainter(folder, steps=2)(holes)
    for hole, picture in zip(holes, found, strict=True):
        assert picture.shape == hole.picture.shape and picture.dtype == np.uint8
        assert np.array_equal(picture[~hole.where], hole.picture[~hole.where])
        assert not hole.where.any() or (picture[hole.where] != 255).mean() > 0.9
    again = WanVaceInpainter(folder, steps=2)(holes)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    other = [Hole(h.picture // 2, h.where, h.window) for h in holes]
    moved = WanVaceInpainter(folder, steps=2)(other)
    assert not np.array_equal(moved[3][holes[3].where], found[3][holes[3].where])


def test_the_network_answers_as_diffusers_own_way_of_asking_it(folder: Path) -> None:
    """5 frames of 32x48, which need no filling up; the embedding of nothing by hand."""
    from diffusers import WanVACEPipeline

    holes = clip(5, 32, 48)
    inpainter = WanVaceInpainter(folder, steps=2)
    found = np.stack(inpainter(holes))
    pipe = WanVACEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    ids = pipe.tokenizer("", return_tensors="pt").input_ids
    words = torch.zeros(1, 512, 8)
    with torch.no_grad():
        words[:, : ids.shape[1]] = pipe.text_encoder(ids).last_hidden_state
    assert ids.shape[1] == 1 and torch.allclose(inpainter._words, words, atol=1e-6)
    shown = np.stack([np.where(h.where[..., None], np.uint8(128), h.picture) for h in holes])
    where = np.stack([h.where for h in holes])
    seen: list[int] = []
    inpainter._pipe = lambda generator, **said: (
        seen.append(generator.initial_seed()) or pipe(generator=generator, **said)
    )
    inpainter._sample(shown, where)
    made = pipe(
        video=[Image.fromarray(frame) for frame in shown],
        mask=[Image.fromarray(mask).convert("RGB") for mask in where],
        prompt_embeds=words,
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seen[0]),
    ).frames[0]
    assert np.abs(255 * made - found)[where].max() < 2
    assert np.ptp(found[where]) > 5  # it says something


def test_a_long_clip_goes_in_parts_that_start_from_what_was_filled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [slice(0, 81), slice(76, 157), slice(152, 200)]
    assert list(wan_vace._parts(200)) == parts
    assert list(wan_vace._parts(81)) == [slice(0, 81)] and list(wan_vace._parts(1)) == [slice(0, 1)]
    asked: list[tuple[int, int, int]] = []

    def answer(self: object, frames: np.ndarray, where: np.ndarray) -> np.ndarray:
        asked.append((len(frames), int(where.any((1, 2)).sum()), int(frames[0, 10, 12, 0])))
        return np.full_like(frames, len(asked))

    monkeypatch.setattr(WanVaceInpainter, "_answer", answer)
    found = np.stack(WanVaceInpainter(folder)(clip(100, 24, 32)))
    assert asked[0][:2] == (81, 80)  # the first frame has no hole
    assert asked[1] == (
        24,
        19,
        1,
    )  # frames 76 to 99; the first five are as the first part left them
    assert (found[1:81, 8:20, 10:24] == 1).all() and (found[81:, 8:20, 10:24] == 2).all()


class Paints:
    """Paints all holes of a clip, which it must get as a whole."""

    name, licence, video = "paints", "MIT", True

    def __init__(self) -> None:
        self.calls: list[list[bool]] = []

    def __call__(self, holes: Sequence[Hole]) -> list[np.ndarray]:
        self.calls.append([bool(hole.where.any()) for hole in holes])
        pictures = [hole.picture.copy() for hole in holes]
        for picture, hole in zip(pictures, holes, strict=True):
            picture[hole.where] = 7
        return pictures


def test_a_clean_plate_keeps_what_was_seen_and_asks_once_for_the_whole_clip() -> None:
    moving = moving_disc(count=8, pan=0.0, speed=3.0, radius=24, noise=0.0)
    alpha = moving.alpha.copy()
    alpha[0] = 0  # a frame without a hole
    inpainter = Paints()
    plate = clean_plate(moving.frames, alpha, inpainter=inpainter)
    plain = clean_plate(moving.frames, alpha)
    assert plate.kind == "inpainted" and 0 < plate.unseen_fraction < 1
    assert len(inpainter.calls) == 1 and inpainter.calls[0][0] is False
    assert len(inpainter.calls[0]) == 8 and sum(inpainter.calls[0]) >= 3
    assert np.array_equal(plate.seen, plain.seen)
    assert np.array_equal(plate.background[plate.seen], plain.background[plate.seen])
    deep = ~plate.seen & (alpha > 0.99)
    assert deep.any() and (plate.background[deep] == 7).all()
    nothing = clean_plate(moving.frames, np.zeros_like(alpha), inpainter=inpainter)
    assert nothing.kind == "real" and len(inpainter.calls) == 1


def test_other_weights_are_refused_with_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    def changed(name: str) -> Path:
        shutil.copytree(folder, tmp_path / name)
        return tmp_path / name

    with pytest.raises(ValueError, match="inpainter 'wan-vace' needs weights"):
        make_inpainter("wan-vace")
    with pytest.raises(ValueError, match="not found"):
        make_inpainter("wan-vace", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="are others"):
        make_inpainter("wan-vace@" + 64 * "0", str(folder))
    with pytest.raises(ValueError, match="cannot use the device"):
        make_inpainter("wan-vace", str(folder), "cuda:63")
    plain = changed("plain")
    index = json.loads((plain / "model_index.json").read_text())
    (plain / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="holds a WanPipeline, not a WanVACEPipeline"):
        make_inpainter("wan-vace", str(plain))
    short = changed("short")
    (file,) = (short / "transformer").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not whole"):
        make_inpainter("wan-vace", str(short))
    (pickled := changed("pickled") / "vae").joinpath("diffusion_pytorch_model.bin").write_bytes(b"")
    (file,) = pickled.glob("*.safetensors")
    file.unlink()
    with pytest.raises(ValueError, match=r"vae lacks \d+ of \d+ weights as safetensors"):
        make_inpainter("wan-vace", str(pickled.parent))
    wider = changed("wider") / "transformer/config.json"
    wider.write_text(json.dumps(json.loads(wider.read_text()) | {"ffn_dim": 24}))
    with pytest.raises(ValueError, match="transformer lacks"):
        make_inpainter("wan-vace", str(wider.parents[1]))
