"""The column `known` on its way to a mask at latent size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from layerflow.clip import ALPHA, LAYERS, LayeredClip, composite
from layerflow.corpus import latents as module
from layerflow.corpus.latents import CLIPS, Latents
from layerflow.corpus.table import EXTENDED_SCHEMA, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.media.known import KNOWN, encode_known, pack_known
from layerflow.media.layer_stack import LayerStack
from layerflow.model.presets import init_directory
from pipelines.encode.clip_latents import Augment, Encoder, Options, pictures_of
from pipelines.encode.job import run_encode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_directory(tmp_path_factory.mktemp("tiny") / "model", "tiny")


def row(index: int, known: bool = True, kind: str = "mined") -> dict[str, Any]:
    """A clip whose alpha is 255 where its background is known: it takes the pictures' way."""
    rng = np.random.default_rng(index)
    frames = 1 if kind == "image" else 8
    colours = rng.integers(0, 255, (2, frames, 5, 6, 3), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    seen = np.ones((frames, 40, 48), bool)
    for t in range(frames):
        seen[t, 9 + t : 20 + t, 5 + 2 * t : 21 + 2 * t] = False
    alpha = np.uint8(255) * seen
    blended = composite(colours[0], alpha, colours[1])
    clip = LayeredClip(colours[0], alpha, colours[1], blended, kind=kind)
    source = origin(f"v{index}.mp4", f"{index:064x}")
    made = encode_row(clip, id=f"{index:016x}", origin=source, quality={}, recipe="r")
    cell = encode_known(pack_known(seen, np.ones_like(seen)), 8.0, still=kind == "image")
    return made | {KNOWN: cell if known else None}


def from_alpha(picture: LayerStack, side: int) -> np.ndarray:
    """Which cells are known by a clip's alpha, bool [T, h, w]."""
    height, width = picture.size
    cells = picture.layer(ALPHA).reshape(-1, height // side, side, width // side, side)
    return (cells == 255).all((2, 4))


@pytest.mark.parametrize(
    ("augment", "size", "kind"),
    [
        (Augment(flip=True, reverse=True), None, "mined"),
        (Augment(crops=2, min_crop=0.5), (16, 24), "mined"),
        (Augment(freeze=3), (32, 32), "mined"),
        (Augment(flip=True, crops=1), None, "image"),
    ],
)
def test_the_mask_goes_through_every_variant_as_the_pictures_do(
    model: Path, augment: Augment, size: tuple[int, int] | None, kind: str
) -> None:
    options = Options(str(model), size, frames=None if kind == "image" else 4, augment=augment)
    source = row(1, kind=kind)
    encoder = Encoder(options)
    masks, pictures = encoder.known(source, LAYERS), pictures_of(source, options)
    assert len(masks) == len(pictures) > 1
    for mask, picture in zip(masks, pictures, strict=True):
        assert mask is not None and mask.shape[0] == 4
        want = from_alpha(picture, 8)
        assert np.array_equal(mask[2], want) and 0 < want.mean() < 1
        assert mask[[0, 1, 3]].all()


def test_latents_hold_it_and_a_change_is_encoded_again(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": model, "out": tmp_path / "l", "size": (32, 40)}
    options |= {"workers": 0, "quiet": True}
    plain = [row(1, known=False), row(2, known=False)]
    write_table(tmp_path / "plain", plain, EXTENDED_SCHEMA)
    run_encode([tmp_path / "plain"], **options)
    assert [Latents.open(tmp_path / "l").item(i)["known"] for i in range(2)] == [None, None]
    write_table(tmp_path / "told", [row(1), plain[1]], EXTENDED_SCHEMA)
    assert run_encode([tmp_path / "told"], **options).encoded == 1
    store = Latents.open(tmp_path / "l")
    known = store.item(0)["known"]
    assert known.shape == (4, 8, 4, 5) and known.dtype == bool
    (picture,) = pictures_of(row(1), Options(str(model), (32, 40)))
    assert np.array_equal(known[2], from_alpha(picture, 8)) and not known[2].all()
    assert store.item(1)["known"] is None
    assert run_encode([tmp_path / "told"], **options).encoded == 0


def test_latents_from_before_the_column_are_read_and_wrong_masks_are_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "l"
    options: dict[str, Any] = {"model": model, "out": out, "size": (32, 40), "workers": 0}
    options["quiet"] = True
    write_table(tmp_path / "told", [row(1), row(2)], EXTENDED_SCHEMA)
    run_encode([tmp_path / "told"], **options)
    store = Latents.open(out)
    rows = [store.raw(i) for i in range(2)]
    bad = [rows[0], rows[1] | {KNOWN: rows[1][KNOWN][:-1]}]
    with module.LatentsWriter(tmp_path / "bad", store.fingerprint) as writer:
        writer.clips(bad)
    with pytest.raises(ValueError, match="do not fit their shape"):
        Latents.open(tmp_path / "bad")
    older = pa.schema([field for field in CLIPS if field.name != KNOWN])
    with monkeypatch.context() as patch:
        patch.setattr(module, "clips_schema", lambda layers: older)
        with module.LatentsWriter(tmp_path / "old", store.fingerprint) as writer:
            writer.clips({k: v for k, v in one.items() if k != KNOWN} for one in rows)
    old = Latents.open(tmp_path / "old")
    assert old.item(0)["known"] is None and set(old.raw(0)) == set(CLIPS.names)
    assert np.array_equal(old.item(1)["moments"], store.item(1)["moments"])


def test_a_damaged_cell_rejects_its_clip_alone(model: Path, tmp_path: Path) -> None:
    broken = row(1)
    broken[KNOWN] = encode_known(np.zeros((8, 40, 48), np.uint8) + 7, 8.0)
    write_table(tmp_path / "told", [broken, row(2)], EXTENDED_SCHEMA)
    made = run_encode(
        [tmp_path / "told"], model=model, out=tmp_path / "l", size=(32, 40), workers=0, quiet=True
    )
    assert made.clips == 1 and [id for id, _ in made.rejected] == [broken["id"]]
    assert "levels" in made.rejected[0][1]
