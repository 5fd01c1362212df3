"""Importers beyond file names: MuLAn's pickles, tables by column; layouts that miss something."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layerflow.clip import composite
from layerflow.corpus.columns import decode_objects
from layerflow.corpus.validate import validate
from layerflow.media.cells import decode_png, encode_png
from pipelines.inputs.importers import IMPORTERS, Importer, Listing, importer_of
from pipelines.inputs.layouts import Group
from pipelines.inputs.safepickle import read_pickle
from pipelines.inputs.tables import list_parts, mapping_of, read_cells
from pipelines.readers.layered_stills import StillLayers
from pipelines.readers.stills import read_still
from tests.support.packed import disc, only, run, slope, write


def annotation(size: int = 48, count: int = 2) -> tuple[np.ndarray, dict[str, Any]]:
    """A base image of two squares over a slope, and its annotation as MuLAn writes it."""
    hidden = slope(size, size)
    base = hidden.copy()
    instances: dict[int, Any] = {}
    for k in range(count):
        mask = np.zeros((size, size), bool)
        mask[8 + 10 * k : 26 + 10 * k, 6 + 8 * k : 24 + 8 * k] = True
        base[mask] = (200 - 60 * k, 40, 30 + 90 * k)
        instances[k] = {"blip2": f"square {k}", "llava": "long", "instance_alpha": mask * 1.0}
    for k in range(count):
        own = np.zeros((size, size), bool)
        own[8 + 10 * k : 26 + 10 * k, 6 + 8 * k : 24 + 8 * k] = True
        colour = np.array((200 - 60 * k, 40, 30 + 90 * k))
        seen = own & (base == colour).all(-1)
        delta = np.where((own & ~seen)[..., None], colour, 0).astype(np.int16)
        instances[k] |= {"original_image_mask": seen, "inpainted_delta": delta}
    visible = (base == hidden).all(-1)
    background = {
        "blip2": "a grey wall",
        "llava": "",
        "original_image_mask": visible,
        "inpainted_delta": np.where(visible[..., None], 0, hidden).astype(np.int16),
    }
    image = {"blip2": "squares on a wall", "llava": "x"}
    return base, {"image": image, "background": background, "instances": instances}


def save(path: Path, content: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zlib.compress(pickle.dumps(content, protocol)))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_mulan_gives_all_instances_and_its_captions(tmp_path: Path, protocol: int) -> None:
    base, content = annotation()
    save(tmp_path / "in/annotations/000000000042.p.zl", content, protocol)
    write(tmp_path / "in/coco/000000000042.png", base)
    corpus = run(tmp_path, tmp_path / "in")
    clip = only(corpus)
    assert np.abs(clip.blended[0].astype(int) - base).max() <= 1
    assert np.array_equal(clip.background[0], slope())
    assert clip.background_kind == "inpainted"
    assert clip.prompts == {
        "foreground": "square 0, square 1",
        "background": "a grey wall",
        "blended": "squares on a wall",
    }
    objects = decode_objects(corpus.row(0))
    assert [item.prompt for item in objects] == ["square 0", "square 1"]
    assert (objects[0].visible < objects[0].amodal).any()
    assert np.array_equal(objects[1].visible, objects[1].amodal)
    assert validate(corpus) == []


class Evil:
    """Touches a file when plain pickle loads it."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.flag}'",)


def test_pickles_run_nothing(tmp_path: Path) -> None:
    base, content = annotation()
    flag = tmp_path / "flag"
    bad = {
        "evil": content | {"image": Evil(flag)},
        "object": content | {"image": {"blip2": np.array([{}], dtype=object)}},
        "flat": [1, 2],
        "cut": content,
    }
    for name, value in bad.items():
        save(tmp_path / f"in/{name}.p.zl", value)
        write(tmp_path / f"in/{name}.png", base)
    whole = (tmp_path / "in/cut.p.zl").read_bytes()
    (tmp_path / "in/cut.p.zl").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "in/alone.p.zl", content)
    save(tmp_path / "in/other.p.zl", content)
    write(tmp_path / "in/other.png", base[:20])
    corpus = run(tmp_path, tmp_path / "in")
    assert len(corpus) == 0
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert "asks for posix.system" in reasons["evil.p.zl"]
    assert not flag.exists()
    pickle.loads(pickle.dumps(Evil(flag)))
    assert flag.exists(), "the payload works: the check above could have failed"
    assert "pickle" in reasons["object.p.zl"]
    assert "no dict with the keys" in reasons["flat.p.zl"]
    assert "cut off" in reasons["cut.p.zl"]
    assert "base image is missing" in reasons["alone.p.zl"]
    assert "is it the right one?" in reasons["other.p.zl"]


def test_arrays_that_lie_about_their_size_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    plain = read_pickle(save(tmp_path / "ok.p.zl", {"a": array, "f": np.float64(1.5)}), ("a",))
    assert np.array_equal(plain["a"], array) and plain["f"] == 1.5
    fortran = save(tmp_path / "f.p.zl", {"a": np.asfortranarray(array)})
    assert np.array_equal(read_pickle(fortran)["a"], array)
    data = pickle.dumps({"a": array}, 2).replace(
        b"K\x02K\x03\x86", b"M" + struct.pack("<H", 9999) + b"K\x03\x86"
    )
    lying = tmp_path / "lie.p.zl"
    lying.write_bytes(zlib.compress(data))
    with pytest.raises(ValueError, match="does not fit its 24 bytes"):
        read_pickle(lying)
    monkeypatch.setattr("pipelines.inputs.safepickle.MAX_BYTES", 10_000)
    bomb = save(tmp_path / "bomb.p.zl", {"a": b"\0" * 1_000_000})
    with pytest.raises(ValueError, match="over 10000 bytes when decompressed"):
        read_pickle(bomb)


def picture_rows(root: Path) -> dict[str, list[Any]]:
    write(root / "far/away.png", slope())
    cut = [encode_png(disc(colour=(40 * k, 90, 30))) for k in range(3)]
    back = {"bytes": encode_png(slope()), "path": None}
    return {
        "rgba": [{"bytes": cut[0], "path": "a.png"}, {"bytes": cut[1], "path": None}, None],
        "plate": [back, {"bytes": None, "path": "far/away.png"}, back],
        "text": ["a red disc", None, "x"],
    }


def test_tables_are_read_by_column(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    table = pa.table(picture_rows(root))
    pq.write_table(table, root / "train-00000-of-00001.parquet", row_group_size=2)
    said = {"foreground": "rgba", "background": "plate", "foreground_prompt": "text"}
    corpus = run(tmp_path, root, layout="dataset", columns=said)
    assert len(corpus) == 2
    assert [row["foreground_prompt"] for row in corpus.rows()] == ["a red disc", "an object"]
    uri = "train-00000-of-00001.parquet"
    assert [row["origin"]["uri"] for row in corpus.rows()] == [f"{uri}#0", f"{uri}#1"]
    (bad,) = corpus.rejected()
    assert bad["uri"] == f"{uri}#2" and "no picture with an alpha channel" in bad["reason"]
    clip = corpus.clip(0)
    assert np.array_equal(clip.background[0], slope()) and clip.background_kind == "real"


def test_a_row_without_any_picture_is_rejected_and_the_others_are_packed(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    pictures = [None, {"bytes": encode_png(disc()), "path": None}]
    pq.write_table(pa.table({"rgba": pictures}), root / "t.parquet")
    corpus = run(tmp_path, root, layout="dataset", columns={"foreground": "rgba"})
    assert [row["origin"]["uri"] for row in corpus.rows()] == ["t.parquet#1"]
    (bad,) = corpus.rejected()
    assert bad["uri"] == "t.parquet#0" and "no picture with an alpha channel" in bad["reason"]


def test_arrow_datasets_and_known_column_names(tmp_path: Path) -> None:
    import datasets

    rows = {
        "image": [Image.fromarray(composite(disc()[..., :3], disc()[..., 3], slope()))] * 3,
        "mask": [Image.fromarray(disc()[..., 3])] * 3,
        "caption": ["a disc on a wall"] * 3,
    }
    features = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.Image(), "caption": datasets.Value("string")}
    )
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "in"))
    corpus = run(tmp_path, tmp_path / "in")  # recognised
    assert len(corpus) == 3
    assert corpus.row(0)["blended_prompt"] == "a disc on a wall"
    parts = list_parts(str(tmp_path / "in"))
    numbers = [n for n, _ in read_cells(parts[0], {"blended": "image"}, 1, 3)]
    assert numbers == [1, 2]


def test_tables_do_not_lead_out_of_their_folder_and_columns_must_be_there(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write(tmp_path / "secret.png", disc())
    root.mkdir()
    names = ["../secret.png", str(tmp_path / "secret.png"), "nowhere.png"]
    pq.write_table(pa.table({"fg": names}), root / "t.parquet")
    corpus = run(tmp_path, root, layout="dataset")
    assert len(corpus) == 0
    reasons = [row["reason"] for row in corpus.rejected()]
    assert "leads out of the table's folder" in reasons[0]
    assert "leads out of the table's folder" in reasons[1]
    assert "is no file" in reasons[2]
    with pytest.raises(ValueError, match="no column 'rgba'"):
        run(tmp_path, root, layout="dataset", columns={"foreground": "rgba"}, out="b")
    with pytest.raises(ValueError, match="'cut' is none of"):
        mapping_of(("a",), {"cut": "a"})
    with pytest.raises(ValueError, match="no column of pictures is known"):
        mapping_of(("a", "b"), {})
    (root / "t.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"t\.parquet: is no table"):
        run(tmp_path, root, layout="dataset", out="c")


def test_a_named_layout_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "in/image/a.png", slope())
    write(tmp_path / "in/alpha/a.png", disc()[..., 3])
    write(tmp_path / "in/image/b.png", slope(level=40))
    write(tmp_path / "in/alpha/c.png", disc()[..., 3])
    corpus = run(tmp_path, tmp_path / "in", layout="pairs")
    assert [row["origin"]["uri"] for row in corpus.rows()] == ["image/a.png"]
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert set(reasons) == {"image/b.png", "alpha/c.png"}
    assert all("layout pairs needs alpha + blended or" in text for text in reasons.values())


def test_every_layout_is_listed_once_and_found_by_name(tmp_path: Path) -> None:
    for name in IMPORTERS:
        assert importer_of(name, tmp_path).name == name
    (tmp_path / "meta.json").write_text(json.dumps({"1": {"images_fg": "a.png"}}))
    assert importer_of("auto", tmp_path).name == "layerflow-images"


class TopAndBottom(Importer):
    """One file a still: the cut-out above, its background below."""

    name = "top-and-bottom"

    def recognises(self, root: Path) -> bool:
        return (root / "halves").is_dir()

    def list(self, root: Path) -> Listing:
        paths = sorted((root / "halves").iterdir())
        return Listing([Group(path.name, path.stem, (("both", path),)) for path in paths])

    def read(self, files: Mapping[str, Path]) -> StillLayers:
        both = read_still(files["both"])
        half = len(both) // 2
        return StillLayers(both[:half], both[half:, :, :3], "real")


def test_an_importer_is_one_object_and_one_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("halves")
    vars(module)["HALVES"] = TopAndBottom()
    monkeypatch.setitem(sys.modules, "halves", module)
    monkeypatch.setitem(IMPORTERS, "top-and-bottom", "halves:HALVES")
    opaque = np.full((48, 48, 1), 255, np.uint8)
    both = np.concatenate([disc(), np.dstack([slope(), opaque])])
    write(tmp_path / "in/halves/a.png", both)
    for layout in ("auto", "top-and-bottom"):
        clip = only(run(tmp_path, tmp_path / "in", layout=layout, out=layout))
        assert np.array_equal(clip.alpha[0], disc()[..., 3])
        assert np.array_equal(clip.background[0], slope())


def zip_bomb(path: Path, side: int) -> Path:
    """A small PNG of ``side`` x ``side`` zeros."""
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    squeeze = zlib.compressobj(1)
    body = b"".join(squeeze.compress(b"\0" * (4 * side + 1)) for _ in range(side))
    parts = [(b"IHDR", header), (b"IDAT", body + squeeze.flush()), (b"IEND", b"")]
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        check = struct.pack(">I", zlib.crc32(kind + data))
        out += struct.pack(">I", len(data)) + kind + data + check
    path.write_bytes(out)
    return path


def test_a_zip_bomb_png_is_refused_or_harmless(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write(root / "good.png", disc())
    huge = zip_bomb(root / "huge.png", 8200)  # 67 megapixels in little more than a megabyte
    assert huge.stat().st_size < 2_000_000
    text = b"tEXtsome\0" + b"x" * 10
    zipped = b"zTXtsome\0\0" + zlib.compress(b"y" * 80_000_000, 1)
    whole = encode_png(disc(colour=(9, 200, 30)))
    chunks = b""
    for chunk in (text, zipped):
        check = struct.pack(">I", zlib.crc32(chunk))
        chunks += struct.pack(">I", len(chunk) - 4) + chunk + check
    (root / "text.png").write_bytes(whole[:33] + chunks + whole[33:])
    corpus = run(tmp_path, root)
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert "over the limit of 64000000 pixels" in reasons["huge.png"]
    used = {row["origin"]["uri"] for row in corpus.rows()}
    assert "good.png" in used and used | set(reasons) == {"good.png", "huge.png", "text.png"}


def test_awkward_modes_give_the_layer_that_they_show(tmp_path: Path) -> None:
    """Palette with transparency, grey with alpha, 16 bit; CMYK has no alpha and is refused."""
    rgba = disc(colour=(100, 100, 100), soft=0.01)
    image = Image.fromarray(rgba)
    root = tmp_path / "in"
    root.mkdir()
    image.convert("LA").save(root / "grey.png")
    palette = image.convert("RGB").quantize(4)
    palette.save(root / "palette.png", transparency=bytes([255, 0, 255, 255]))
    image.convert("CMYK").save(root / "print.tif")
    Image.fromarray(rgba[..., 3].astype(np.uint16) * 257).save(root / "deep_alpha.png")
    image.convert("RGB").save(root / "deep.png")
    corpus = run(tmp_path, root)
    by_uri = {row["origin"]["uri"]: row for row in corpus.rows()}
    assert set(by_uri) >= {"grey.png", "deep.png"}
    for uri in ("grey.png", "deep.png"):
        alpha = decode_png(by_uri[uri]["alpha"])
        assert np.abs(alpha.astype(int) - rgba[..., 3]).max() <= 1, uri
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert "fully opaque" in reasons["print.tif"]
