"""Attacks by pictures, tables of pictures, and what is no file: what must happen to each."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layerflow.documents import read_json
from layerflow.media.cells import MediaError, encode_png
from layerflow.media.isolate import _unpacked
from layerflow.media.pictures import read_picture
from layerflow.model.sample import read_file
from manifests.yaml_file import read_yaml
from pipelines.inputs.listing import list_sources
from pipelines.inputs.prompts import read_prompt_table
from pipelines.inputs.tables import list_parts, read_cells
from pipelines.inputs.twins import traits_of
from pipelines.readers.animations import is_animation
from pipelines.readers.stills import load_cutout, read_still, still_size
from tests.support.hostile_child import crashes, where

RGBA = np.zeros((16, 24, 4), np.uint8)
RGBA[4:12, 6:18] = 200, 50, 20, 255
PNG = encode_png(RGBA)


def chunk(name: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + crc


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(16 * 97)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + body + chunk(b"IEND", b"")


def tiff(loop: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGBA).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    if not loop:
        return bytes(data[: len(data) // 2])
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)  # the next picture is this one
    return bytes(data)


PACKED = zlib.compress(bytes(80 << 20))
# The attack in a sentence; the file; what is said of it (empty: it is read as a picture).
PICTURES: list[tuple[str, Callable[[], bytes], str]] = [
    ("a PostScript program that reads files", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n"
     b"%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\nshowpage\n", "not a readable picture"),
    ("an SVG that names a file", lambda: b'<svg xmlns="http://www.w3.org/2000/svg">'
     b'<image href="file:///etc/passwd"/></svg>', "not a readable picture"),
    ("a PNG that says 60000x60000 pixels", lambda: png(60000, 60000), "over the limit"),
    ("a PNG that says 2**31-1 pixels in a row", lambda: png(2**31 - 1, 1), "over the limit|not a"),
    ("a PNG whose comment unpacks to 80 MB",
     lambda: png(24, 16, chunk(b"zTXt", b"c\0\0" + PACKED)), "not a readable picture"),
    ("a PNG whose colour profile unpacks to 80 MB",
     lambda: png(24, 16, chunk(b"iCCP", b"c\0\0" + PACKED)), "not a readable picture"),
    ("a GIF that says 65535x65535 pixels",
     lambda: b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(768) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
     "over the limit"),
    ("a TIFF that is cut off", lambda: tiff(loop=False), "cannot be decoded|not a readable"),
    ("a TIFF whose next picture is itself", lambda: tiff(loop=True), ""),
    ("Exif of nonsense", lambda: png(24, 16, chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 9999)),
     ""),
    ("an empty file", lambda: b"", "empty"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "make", "said"), PICTURES, ids=[p[0] for p in PICTURES])
def test_attacks_by_pictures(
    what: str, make: Callable[[], bytes], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make())
    if not said:
        assert read_still(path).shape == read_picture(path).shape == (16, 24, 4)
        return
    for read in (read_still, load_cutout, read_picture):
        with pytest.raises(MediaError, match=said):
            read(path)
    with pytest.raises(ValueError, match="cannot be used"):
        read_file(path)
    assert traits_of(path) is None and not is_animation(path)


def test_no_picture_of_a_stranger_is_decoded_in_the_process_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded here")

    monkeypatch.setattr(Image, "open", refused)
    assert (load_cutout(path)[..., 3] == RGBA[..., 3]).all()
    assert still_size(path) == (24, 16) and not is_animation(path)
    assert traits_of(path) is not None and read_file(path)[0].shape == (1, 16, 24, 4)


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (9, "SIGKILL")])
def test_a_picture_that_crashes_its_decoder_is_an_error_of_one_picture(
    number: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-4711")
    with pytest.raises(MediaError, match=f"signal {name}"):
        crashes(number)
    process, environment = where()
    assert process != os.getpid() and "secret-4711" not in environment.values()


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}\n", b"[1", b'{"array": [2, 2]}\n123', b'{"array": [-1]}\n1', b'{"array": []}\n',
     b"[" * 100_000 + b"\n", b'{"array": ["x"]}\n', b'{"dict": 3}\n', b'{"array": [1e999]}\n'],
)  # fmt: skip
def test_a_child_that_lies_about_its_pictures_is_not_believed(answer: bytes) -> None:
    with pytest.raises(MediaError, match="an answer that is none"):
        _unpacked(answer)


# ---- tables of pictures, and of prompts ---------------------------------------------------------


def arrow(path: Path, table: pa.Table, **options: Any) -> Path:
    how = pa.ipc.IpcWriteOptions(**options)
    with (
        pa.OSFile(str(path / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema, options=how) as writer,
    ):
        writer.write_table(table)
    return path


def damaged(path: Path) -> Path:
    """The second picture's offset lies far behind the file."""
    arrow(path, pa.table({"foreground": [PNG, PNG + b"x", PNG]}))
    n = len(PNG)
    ends = struct.pack("<4i", 0, n, 2 * n + 1, 3 * n + 1)
    data = (path / "a.arrow").read_bytes()
    assert ends in data
    wrong = struct.pack("<4i", 0, n, 2**31 - 9, 3 * n + 1)
    (path / "a.arrow").write_bytes(data.replace(ends, wrong))
    return path


def bomb(path: Path) -> Path:
    """A few kilobytes of zeros that take gigabytes when they are unpacked."""
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 9, pa.int32()), [bytes(60 << 20)])
    options = {"store_schema": False, "dictionary_pagesize_limit": 1 << 30, "compression": "zstd"}
    pq.write_table(pa.table({"foreground": cells}), path / "a.parquet", **options)
    assert (path / "a.parquet").stat().st_size < 200_000
    return path


def cells(path: Path) -> list[Any]:
    (part,) = list_parts(str(path))
    return [row["foreground"] for _, row in read_cells(part, {"foreground": "foreground"}, 0, 9)]


def test_tables_of_pictures_are_unpacked_in_the_child_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, other, packed = (tmp_path / name for name in ("sound", "damaged", "bomb"))
    for folder in (sound, other, packed):
        folder.mkdir()
    assert cells(arrow(sound, pa.table({"foreground": [PNG] * 3}))) == [PNG] * 3
    assert cells(arrow(sound, pa.table({"foreground": [PNG]}), compression="zstd")) == [PNG]
    with pytest.raises(ValueError, match=r"a\.arrow.*cannot be .*[Oo]ffset"):
        cells(damaged(other))
    from layerflow.media import isolate

    child = isolate.Contained(isolate.caller, Path(), memory=1100 << 20, writes=False)
    monkeypatch.setattr(isolate, "_children", {os.getpid(): child})
    with pytest.raises(
        ValueError, match=r"a\.parquet.*cannot be unpacked: .*(memory|malloc|alloc)"
    ):
        cells(bomb(packed))
    child.stop()


def test_a_table_whose_cells_repeat_for_free_is_refused_before_it_is_unpacked(
    tmp_path: Path,
) -> None:
    path = tmp_path / "list.parquet"
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int32()), ["y" * 8000])
    pq.write_table(pa.table({"video": names}), path)
    assert path.stat().st_size < 20_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=r"list\.parquet: .*over the limit"):
        list_sources([str(path)])
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_pipes_in_place_of_files_are_refused_at_once(tmp_path: Path) -> None:
    readers: dict[str, Callable[[Path], Any]] = {
        "a.json": read_json,
        "a.yaml": read_yaml,
        "a.jsonl": read_prompt_table,
        "a.csv": read_prompt_table,
    }
    for name, read in readers.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}.* no regular file"):
            read(tmp_path / name)
