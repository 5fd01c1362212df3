"""A picture and its matte of one stem in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerflow.corpus.table import Corpus
from manifests.pack import PackOptions
from pipelines.inputs.importers import importer_of
from pipelines.inputs.layouts import group_files
from pipelines.inputs.sources import list_backgrounds, list_foregrounds
from pipelines.inputs.twins import ALIKE, StillTraits, Twins
from pipelines.pack.job import run_pack


def matte() -> np.ndarray:
    y, x = np.mgrid[:72, :96]
    return np.rint(255 * np.clip((24 - np.hypot(y - 36, x - 48)) / 5 + 0.5, 0, 1)).astype(np.uint8)


def photo(seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(20, 230, (9, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC))


def grey_photo() -> np.ndarray:
    return np.asarray(Image.fromarray(photo()).convert("L"))


def labels() -> Image.Image:
    image = Image.fromarray((matte() > 127).astype(np.uint8) * 2)
    image.putpalette([0, 0, 0, 0, 128, 0, 128, 0, 0])
    return image


MATTES = {
    "grey": lambda: Image.fromarray(matte()),
    "rgb": lambda: Image.fromarray(matte()).convert("RGB"),
    "palette": lambda: Image.fromarray(matte()).convert("P"),
    "bits": lambda: Image.fromarray(matte()).convert("1"),
    "deep": lambda: Image.fromarray(matte().astype(np.uint16) * 257),
    "labels": labels,
    "opaque alpha": lambda: Image.fromarray(matte()).convert("LA"),
}


def save(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in files.items():
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(folder / name.replace("__", "."))
    return folder


def found(folder: Path) -> dict[str, dict[str, str]]:
    return {g.uri: {role: path.name for role, path in g.files} for g in group_files(folder)}


@pytest.mark.parametrize("kind", MATTES)
def test_a_matte_of_any_kind_is_paired_with_its_picture(tmp_path: Path, kind: str) -> None:
    save(tmp_path, x__jpg=photo(), x__png=MATTES[kind]())
    assert found(tmp_path) == {"x.jpg": {"blended": "x.jpg", "alpha": "x.png"}}


def test_the_pictures_decide_which_of_the_two_is_the_matte(tmp_path: Path) -> None:
    save(tmp_path / "a", x__png=grey_photo(), x__jpg=matte())
    save(tmp_path / "b", x__webp=matte(), x__tif=photo())
    save(tmp_path / "c", x__jpg=grey_photo(), x__png=matte())
    assert found(tmp_path / "a")["x.png"] == {"blended": "x.png", "alpha": "x.jpg"}
    assert found(tmp_path / "b")["x.tif"] == {"blended": "x.tif", "alpha": "x.webp"}
    assert found(tmp_path / "c")["x.jpg"] == {"blended": "x.jpg", "alpha": "x.png"}


def test_what_is_no_pair_stands_for_itself(tmp_path: Path) -> None:
    cutout = np.dstack([photo(), matte()])
    for name, other in (("two", photo(1)), ("copy", grey_photo()), ("cutout", cutout)):
        folder = save(tmp_path / name, x__jpg=photo(), x__png=other)
        assert found(folder) == {"x.jpg": {"file": "x.jpg"}, "x.png": {"file": "x.png"}}, name


def test_a_third_file_of_that_stem_stands_for_itself(tmp_path: Path) -> None:
    save(tmp_path / "a", x__jpg=photo(), x__tif=photo(), x__png=matte())
    pair = {"blended": "x.jpg", "alpha": "x.png"}
    assert found(tmp_path / "a") == {"x.jpg": pair, "x.tif": {"file": "x.tif"}}
    folder = save(tmp_path / "b", x__jpg=photo(), x__png=matte())
    Image.fromarray(matte()).save(folder / "x_alpha.png")  # the name says more than the picture
    assert found(folder)["x.jpg"] == {"blended": "x.jpg", "alpha": "x_alpha.png"}
    assert found(folder)["x.png"] == {"file": "x.png"}


def test_pairs_below_a_folder_that_names_a_role(tmp_path: Path) -> None:
    save(tmp_path / "images", x__jpg=photo(), x__png=matte())
    save(tmp_path / "fg", y__jpg=photo(), y__png=matte())
    save(tmp_path / "backgrounds", z__jpg=photo(), z__png=matte())
    roles = {uri: set(group) for uri, group in found(tmp_path).items()}
    assert roles["images/x.jpg"] == {"blended", "alpha"}
    assert roles["fg/y.jpg"] == {"foreground", "alpha"}
    assert roles["backgrounds/z.jpg"] == {"background"}


def test_a_soft_matte_is_one_where_pairs_are_asked_for(tmp_path: Path) -> None:
    haze = np.clip(matte() // 2 + 60, 0, 255).astype(np.uint8)
    save(tmp_path, x__jpg=photo(), x__png=haze)
    for layout, wanted in (("auto", 2), ("pairs", 1)):
        assert len(importer_of(layout, tmp_path).list(tmp_path).stills) == wanted


def test_a_large_folder_of_one_kind_is_not_looked_at_as_a_whole() -> None:
    seen: list[Path] = []

    def look(path: Path) -> StillTraits:
        seen.append(path)
        return StillTraits(grey=path.suffix == ".png", ends=0.9)

    twins = Twins(look)
    pairs = [[Path(f"a/{k}.jpg"), Path(f"a/{k}.png")] for k in range(3 * ALIKE)]
    assert [twins.matte(pair) for pair in pairs] == [pair[1] for pair in pairs]
    assert len(seen) == 2 * ALIKE


def test_a_demo_folder_is_packed_and_pasted_from(tmp_path: Path) -> None:
    """sample1.jpg + sample1.png ...: the object's colour is solved for as for every pair."""
    share = matte()[..., None] / 255
    for k in range(3):
        mixed = np.array((210, 60, 30)) * share + photo(k) * (1 - share)
        pair = {f"sample{k}__jpg": np.rint(mixed).astype(np.uint8), f"sample{k}__png": matte()}
        folder = save(tmp_path / "demo", **pair)
    for layout in ("auto", "pairs"):
        out = tmp_path / layout
        options = PackOptions(inputs=[str(folder)], out=str(out), layout=layout)
        run_pack(options, workers=0, quiet=True)
        corpus = Corpus.open(out)
        assert (len(corpus), len(corpus.rejected())) == (3, 0)
        assert np.array_equal(corpus.clip(0).alpha[0], matte())
    sources = list_foregrounds([str(folder)], "off")
    assert [dict(source.files).keys() for source in sources] == [{"alpha", "blended"}] * 3
    with pytest.raises(ValueError, match="no background"):  # they show their subject
        list_backgrounds([str(folder)])
