"""Attacks by media cells and films: what a stranger may write into them, and what must happen."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from layerflow.corpus.derive import filter_corpus, merge_corpora
from layerflow.corpus.row_cells import clips_of, layers_of, read_cells, read_clip
from layerflow.corpus.row_check import check_row
from layerflow.corpus.table import Corpus, decode_row
from layerflow.corpus.validate import refuse_unsound_rows, validate
from layerflow.media import opening
from layerflow.media.cells import MediaError, encode_alpha, encode_color, encode_png
from layerflow.media.decode import Decoder
from layerflow.media.sandbox import HEAD, Contained
from layerflow.model.presets import init_directory
from pipelines.encode.job import run_encode
from pipelines.publish.files import PublishOptions, make_plan
from tests.support.corpora import make_rows, moving_clip, write_corpus
from tests.support.hostile_child import told

CLIP = moving_clip(0)
PRIVATE = encode_color(CLIP.blended, 8)
ALPHA = encode_alpha(CLIP.alpha, 8)
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nprivate.mp4\n#EXT-X-ENDLIST\n"
DASH = (
    b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
    b'profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period><AdaptationSet><Representation id='
    b'"1"><BaseURL>private.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="private.mp4"/></svg>'


def film(codec: str, container: str, size: tuple[int, int] = (48, 32), frames: int = 5) -> bytes:
    """A film of flat pictures; width and height in pixels."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.zeros((*size[::-1], 3), np.uint8), "rgb24")
            out.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def two_streams() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        streams = [out.add_stream("libx264", rate=8) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for stream in streams:
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), "rgb24")
            out.mux(stream.encode(picture))
        for stream in streams:
            out.mux(stream.encode(None))
    return buffer.getvalue()


def packed(write: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def tar(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as out:
        about = tarfile.TarInfo("../private.mp4")
        about.size = len(PRIVATE)
        out.addfile(about, io.BytesIO(PRIVATE))


def zipped(buffer: io.BytesIO) -> None:
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("../private.mp4", PRIVATE)


def external_reference() -> bytes:
    """Our MP4, whose data reference says that its data lie in ``private.mp4``."""
    data, more = bytearray(PRIVATE), b"private.mp4\0"
    entry = data.index(b"url ") - 4
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref", b"url "):
        place = data.index(name, data.index(b"moov")) - 4
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(more))
    data[entry + 8 : entry + 12] = bytes(4)  # not in this file
    return bytes(data[: entry + 12] + more + data[entry + 12 :])


def linked_segment() -> bytes:
    """Our Matroska, whose muxer's name became the name of the file that it goes on in."""
    old = b"\x4d\x80\x84Lavf\x57\x41\x84Lavf"
    assert old in ALPHA
    return ALPHA.replace(old, b"\x3e\x83\xbb\x8aprivate.mp")


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new)


def chunk(name: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + crc


def png(width: int, height: int, body: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


SIZES = struct.pack(">HH", 48, 32)
EVERY = "no PNG, MP4 or Matroska"

Make = Callable[[], bytes]


@lru_cache
def larger() -> bytes:
    return film("libx264", "mp4", (640, 480))


# The attack in a sentence; the layer whose cell it is; makes the cell; what is said of it.
CELLS: list[tuple[str, str, Make, str]] = [
    ("an ffconcat script names a film beside the job", "blended",
     lambda: b"ffconcat version 1.0\nfile private.mp4\n", EVERY),
    ("a cell that reads like the address concat:private.mp4", "blended",
     lambda: b"concat:private.mp4|private.mp4", EVERY),
    ("an HLS playlist names a film beside the job", "blended", lambda: HLS, EVERY),
    ("a DASH manifest names a film beside the job", "background", lambda: DASH, EVERY),
    ("a session description makes FFmpeg wait on the network", "blended", lambda: SDP, EVERY),
    ("a pattern of numbered pictures", "foreground", lambda: b"private%03d.png", EVERY),
    ("the description of a virtual device", "blended",
     lambda: b"testsrc=duration=9:size=48x32", EVERY),
    ("a playlist behind a byte order mark", "blended", lambda: b"\xef\xbb\xbf" + HLS, EVERY),
    ("a playlist with packets of a transport stream behind it", "blended",
     lambda: HLS.ljust(188, b"#") + film("libx264", "mpegts"), EVERY),
    ("a tar archive with a film", "blended", lambda: packed(tar), EVERY),
    ("a zip archive with a film", "blended", lambda: packed(zipped), EVERY),
    ("an SVG that names a film", "blended", lambda: SVG, EVERY),
    ("a GIF animation", "blended", lambda: film("gif", "gif"), EVERY),
    ("a transport stream, which is a film but no cell", "blended",
     lambda: film("libx264", "mpegts"), EVERY),
    ("an MP4 of a codec that no job writes", "blended",
     lambda: film("mpeg4", "mp4"), "coded as mpeg4"),
    ("Motion JPEG in Matroska", "blended", lambda: film("mjpeg", "matroska"), "coded as mjpeg"),
    ("two films in one cell", "blended", two_streams, "one video stream"),
    ("an alpha with loss", "alpha", lambda: PRIVATE, "lossless"),
    ("a cell that is cut off", "blended", lambda: PRIVATE[: len(PRIVATE) // 2], "cannot be read"),
    ("a cell that is empty", "blended", lambda: b"", "empty"),
    ("a film that goes on for ever", "blended",
     lambda: film("libx264", "mp4", frames=400), "more than 5 frames"),
    ("a film with fewer frames than its row says", "alpha",
     lambda: encode_alpha(CLIP.alpha[:2], 8), "2 frames, the row says 5"),
    ("a film of another size than its row says", "blended",
     larger, "480x640, the row says 32x48"),
    ("a film whose header says another size than its frames have", "blended",
     lambda: patched(larger(), struct.pack(">HH", 640, 480), SIZES), "the row says 32x48"),
    ("an FFV1 whose header says 65535x65408 pixels", "alpha",
     lambda: patched(ALPHA, b"\xb0\x81\x30\xba\x81\x20", b"\xb0\x82\xff\xff\xba\x80"), "cell"),
    ("a film that claims two thousand million frames", "blended",
     lambda: patched(PRIVATE, b"stsz" + bytes(8) + struct.pack(">I", 5),
                     b"stsz" + bytes(4) + struct.pack(">II", 1, 2**31 - 1)), "cell"),
    ("a PNG in a moving clip that says 60000x60000 pixels", "blended",
     lambda: png(60000, 60000, b""), "60000x60000"),
]  # fmt: skip
STILLS: list[tuple[str, Make, str]] = [
    ("a PNG that says 60000x60000 pixels", lambda: png(60000, 60000, b""), "60000x60000"),
    ("a PNG that is an animation",
     lambda: png(48, 32, zlib.compress(bytes(32 * 145)), chunk(b"acTL", bytes(8))), "animation"),
    ("a PNG that is cut off in its header", lambda: png(48, 32, b"")[:20], "cut off"),
    ("a PNG whose picture is noise", lambda: png(48, 32, b"noise"), "PNG"),
    ("a film in a still's row", lambda: film("libx264", "mp4", frames=1), "holds PNG"),
]  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make_rows(3)


def beside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film in the working directory that nobody may read."""
    monkeypatch.chdir(folder)
    for name in ("private.mp4", "private.mp"):
        Path(name).write_bytes(PRIVATE)


@pytest.mark.parametrize(("what", "layer", "make", "said"), CELLS, ids=[c[0] for c in CELLS])
def test_a_cell_is_refused(
    what: str, layer: str, make: Make, said: str,
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    beside(tmp_path, monkeypatch)
    row = {**rows[0], layer: make()}
    assert said in check_row(row, 0).problems[0].what
    if said != "lossless":
        with pytest.raises(MediaError):
            decode_row(row)
        with pytest.raises(MediaError):
            read_cells(row, [layer])


@pytest.mark.parametrize(("what", "make", "said"), STILLS, ids=[s[0] for s in STILLS])
def test_a_still_is_refused(what: str, make: Make, said: str, rows: list[dict[str, Any]]) -> None:
    row = {**rows[2], "blended": make()}
    assert said in check_row(row, 0).problems[0].what


@pytest.mark.parametrize(
    ("layer", "make"), [("blended", external_reference), ("alpha", linked_segment)]
)
def test_a_cell_that_names_another_file_never_reads_it(
    layer: str, make: Make, rows: list[dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    row = {**rows[0], "blended": PRIVATE, "alpha": ALPHA, layer: make()}
    alone = outcome(row)
    beside(tmp_path, monkeypatch)
    assert outcome(row) == alone


def outcome(row: dict[str, Any]) -> bytes | str:
    try:
        clip = decode_row(row)
    except MediaError as error:
        return str(error)
    return clip.blended.tobytes() + clip.alpha.tobytes()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    """A corpus of one sound row and one row for every attack."""
    bad = [
        {**rows[0], layer: make(), "id": f"{index:016x}"}
        for index, (_, layer, make, _) in enumerate(CELLS, start=100)
    ]
    return write_corpus(tmp_path_factory.mktemp("hostile") / "corpus", [rows[0], *bad])


def test_jobs_take_the_sound_row_and_say_why_they_leave_the_others(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(tmp_path, monkeypatch)
    model = init_directory(tmp_path / "model", "tiny")
    done = run_encode(
        [hostile], model=model, out=tmp_path / "latents", size=(32, 40), workers=0, quiet=True
    )
    assert (done.clips, len(done.rejected)) == (1, len(CELLS))
    corpus = Corpus.open(hostile)
    made = filter_corpus(corpus, tmp_path / "kept", where=["num_frames>0"])
    assert (made.rows, made.left_out) == (1, len(CELLS))
    assert validate(made.out) == []
    with pytest.raises(ValueError, match=r"row 0000000000000064, blended: .*no PNG"):
        merge_corpora([corpus], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"row 1 .*no PNG"):
        refuse_unsound_rows(corpus, workers=0)
    with pytest.raises(ValueError, match=r"row 1 .*no PNG"):
        make_plan(hostile, PublishOptions("me/it"), workers=0)
    assert not (tmp_path / "merged").exists()


# ---- films ------------------------------------------------------------------------------------

FILMS: list[tuple[str, Make]] = [
    ("an ffconcat script", lambda: b"ffconcat version 1.0\nfile private.mp4\n"),
    ("an HLS playlist", lambda: HLS),
    ("a DASH manifest", lambda: DASH),
    ("a session description", lambda: SDP),
    ("an SVG", lambda: SVG),
    ("a PNG, which is a picture", lambda: encode_png(CLIP.blended[0])),
    ("a tar archive", lambda: packed(tar)),
    ("a playlist with a film behind it", lambda: HLS.ljust(188, b"#") + film("libx264", "mpegts")),
]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(deadline=60) as opened:
        yield opened


@pytest.mark.parametrize(("what", "make"), FILMS, ids=[f[0] for f in FILMS])
def test_a_film_that_is_none_is_refused(
    what: str, make: Make, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(tmp_path, monkeypatch)
    (tmp_path / "film.mp4").write_bytes(make())
    with pytest.raises(MediaError, match="not a readable video"):
        decoder.probe(tmp_path / "film.mp4")


@pytest.mark.parametrize("name", ["concat:private.mp4", "frame%03d.mkv", "http:__host_a.mp4"])
def test_the_name_of_a_film_is_never_an_address(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(film("libx264", "mp4", frames=7))
    with opening.open_video(path) as container:
        assert len(list(container.decode(video=0))) == 7


def test_a_pipe_is_no_film(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="no regular file"):
        opening.open_video(tmp_path / "a.mp4")


def test_a_film_that_asks_for_another_file_is_told_no() -> None:
    with pytest.raises(PermissionError, match="names another file"):
        opening._refused("private.mp4", 0, {})


# ---- the child --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def child() -> Iterator[Contained]:
    contained = Contained(told, Path(), seconds=60, writes=False)
    yield contained
    contained.stop()


def test_the_child_has_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "OPENAI_API_KEY", "http_proxy",
               "LAYERFLOW_TOKEN", "PYTHON_KEYRING_PASSWORD", "SSH_AUTH_SOCK", "NETRC")  # fmt: skip
    for name in secrets:
        monkeypatch.setenv(name, "secret-4711")
    monkeypatch.setenv("LAYERFLOW_NAME", "plain")
    child = Contained(told, Path(), seconds=60)
    try:
        seen = json.loads(child.call(b"environment"))
    finally:
        child.stop()
    assert "secret-4711" not in seen.values() and not set(secrets) & set(seen)
    assert seen["LAYERFLOW_NAME"] == "plain" and seen["PATH"] == os.environ["PATH"]
    assert seen["HF_HUB_OFFLINE"] == "1"


def test_a_decoding_child_writes_no_file(child: Contained, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="File too large"):
        child.call(f"write {tmp_path / 'a'}".encode())
    assert not (tmp_path / "a").exists() or (tmp_path / "a").stat().st_size == 0


def test_the_child_has_no_file_of_its_parent(child: Contained, tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        fresh = Contained(told, Path(), seconds=60)
        with pytest.raises(MediaError, match="Bad file descriptor"):
            fresh.call(f"descriptor {file.fileno() + 200}".encode())
        fresh.stop()


def test_what_is_too_large_for_the_child_is_an_error(child: Contained) -> None:
    with pytest.raises(MediaError, match="more memory than allowed"):
        child.call(b"memory")
    assert child.call(b"core") == b"0"


def test_a_child_that_prints_is_understood(child: Contained) -> None:
    assert child.call(b"print") == b"done"


def test_a_child_killed_by_a_signal_is_an_error_of_one_request(child: Contained) -> None:
    for number, name in ((11, "SIGSEGV"), (9, "SIGKILL"), (4, "SIGILL")):
        with pytest.raises(MediaError, match=f"the decoder crashed .signal {name}"):
            child.call(f"signal {number}".encode())
    assert child.call(b"") == b"done"


def test_a_child_that_hangs_is_ended_and_replaced() -> None:
    child = Contained(told, Path(), seconds=60)
    assert child.call(b"") == b"done"
    child.seconds, first = 0.3, child.pid
    with pytest.raises(MediaError, match="longer than 0 s"):
        child.call(b"sleep")
    assert child.pid is None
    child.seconds = 60
    assert child.call(b"") == b"done" and child.pid != first
    child.stop()


def test_an_answer_of_absurd_size_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Contained(told, Path(), seconds=60)
    monkeypatch.setattr(child, "_receive", lambda size: struct.pack(HEAD, 2**60, False, False))
    child.ask(b"")
    with pytest.raises(MediaError, match="an answer that is none"):
        child.answer()


def test_shared_memory_gives_the_same_answers_and_larger_ones_come_through_the_pipe() -> None:
    child = Contained(told, Path(), seconds=60, shared=10)
    for size in (0, 1, 10, 11, 5_000_000):
        answer = child.call(f"bytes {size}".encode())
        assert bytes(answer) == b"7" * size
        assert isinstance(answer, memoryview) == (0 < size <= 10)
    with pytest.raises(MediaError, match="signal SIGKILL"):
        child.call(b"signal 9")
    assert bytes(child.call(b"bytes 3")) == b"777"
    child.stop()


def test_pictures_of_a_child_that_lies_are_refused(rows: list[dict[str, Any]]) -> None:
    layers, fps, kind = layers_of(decode_row(rows[0]))
    fewer, text = layers | {"blended": layers["blended"][:2]}, layers | {"alpha": "none"}
    lies = (layers, fps, "x"), (layers, "8 8", kind), (fewer, fps, kind), (text, fps, kind), ({}, 8)
    for lie in (1, [1], *([lie] for lie in lies)):
        with pytest.raises(MediaError, match="the decoder gave"):
            clips_of(rows[0], lie)
    same = read_clip(rows[0])
    assert (same.blended == decode_row(rows[0]).blended).all() and same.fps == 8
