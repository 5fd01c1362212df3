"""Pictures are read as they are shown: square pixels, upright, the film and not its cover."""

from __future__ import annotations

import io
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from layerflow.media import video
from layerflow.media.cells import MediaError, write_vp9_alpha
from layerflow.media.mattes import fetch_matte
from layerflow.media.upright import View, aspect_of, view_of
from tests.support.numbered import X264, Kind, numbered, numbers, write

ORIENTATIONS = {  # a, b, c, d of the display matrix, and what it does to a picture
    "none": ((1, 0, 0, 1), lambda p: p),
    "hflip": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "vflip": ((1, 0, 0, -1), lambda p: p[::-1]),
    "rot180": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "rot90": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "rot270": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transpose": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transverse": ((0, -1, -1, 0), lambda p: p[::-1, ::-1].swapaxes(0, 1)),
}


def turned(path: Path, matrix: tuple[int, ...]) -> Path:
    """The same MP4 with another display matrix in its track header."""
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def oblong(
    path: Path, aspect: Fraction, pictures: list[np.ndarray], codec: str = "libx264"
) -> Path:
    options = X264 if codec == "libx264" else {"qscale": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def disc(height: int, width: int, aspect: float = 1.0) -> np.ndarray:
    """A white disc that is round when it is shown with the given pixel aspect."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) * aspect) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2
    return np.where(inside[..., None], 255, 0).repeat(3, 2).astype(np.uint8)


def roundness(picture: np.ndarray) -> float:
    y, x = np.nonzero(picture.reshape(*picture.shape[:2], -1)[..., 0] > 127)
    return float((np.ptp(x) + 1) / (np.ptp(y) + 1))


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_whole_display_matrix_is_applied(name: str, tmp_path: Path) -> None:
    matrix, turn = ORIENTATIONS[name]
    kind = Kind("a.mp4", "libx264", X264, count=12)
    path = turned(write(tmp_path / "a.mp4", kind), matrix)
    wanted = np.stack([turn(numbered(k)) for k in range(12)]).astype(int)
    height, width = wanted.shape[1:3]
    info = video.probe(path)
    assert (info.height, info.width) == (height, width)
    assert info.mirrored == (name in ("hflip", "vflip", "transpose", "transverse"))
    times, _ = video.scan(path)
    for found in (
        video.fetch(path, times, height, width),
        video.read_frames(path)[0],
        fetch_matte(path, times, height, width)[..., None],
    ):
        assert np.abs(found - wanted).mean() < 12


@pytest.mark.parametrize(
    ("name", "aspect", "codec"),
    [
        ("a.mp4", Fraction(4, 3), "libx264"),
        ("a.mkv", Fraction(16, 11), "libx264"),
        ("a.ts", Fraction(8, 9), "libx264"),
        ("a.mpg", Fraction(4, 3), "mpeg2video"),
        ("a.avi", Fraction(4, 3), "mpeg4"),
    ],
)
def test_pixels_are_made_square(name: str, aspect: Fraction, codec: str, tmp_path: Path) -> None:
    height, width = (96, 96) if codec == "mpeg2video" else (96, 144)  # MPEG-2 knows 4:3 of all
    picture = disc(height, width, float(aspect))
    path = oblong(tmp_path / name, aspect, [picture] * 6, codec)
    wide = round(width * aspect)
    info = video.probe(path)
    assert (info.height, info.width) == (height, wide)
    times, thumbs = video.scan(path)
    assert thumbs.shape[1:3] == (round(height * 128 / wide), 128)
    for found in (
        thumbs[0],
        video.fetch(path, times[:1], height, wide)[0],
        video.read_frames(path)[0][0],
        video.read_frames(path, times=times[2:3], size=(48, 48))[0][0],
        fetch_matte(path, times[:1], height, wide)[0],
    ):
        assert roundness(found) == pytest.approx(1, abs=0.05)


def test_oblong_pixels_lie_down_with_a_film_that_is_turned(tmp_path: Path) -> None:
    path = oblong(tmp_path / "a.mp4", Fraction(4, 3), [disc(96, 144, 4 / 3)] * 4)
    turned(path, (0, 1, -1, 0))
    assert (video.probe(path).height, video.probe(path).width) == (192, 96)
    assert roundness(video.read_frames(path)[0][0]) == pytest.approx(1, abs=0.05)


def test_the_container_has_the_last_word_on_the_shape_of_pixels(tmp_path: Path) -> None:
    path = oblong(tmp_path / "a.mp4", Fraction(4, 3), [disc(96, 144, 2.0)] * 6)
    data = path.read_bytes()
    place = data.find(b"pasp")
    for ratio, wide in (((2, 1), 288), ((0, 1), 192), ((1, 0), 192)):
        path.write_bytes(data[: place + 4] + struct.pack(">2I", *ratio) + data[place + 12 :])
        assert (video.probe(path).height, video.probe(path).width) == (96, wide)
        assert video.read_frames(path)[0].shape[1:3] == (96, wide)


def test_a_pixel_aspect_that_changes_inside_is_a_splice(tmp_path: Path) -> None:
    kinds = [(Fraction(4, 3), "1.ts"), (Fraction(1, 1), "2.ts")]
    parts = [
        oblong(tmp_path / name, aspect, [disc(96, 144, float(aspect))] * 8)
        for aspect, name in kinds
    ]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    splices: list[float] = []
    times, _ = video.scan(path, splices=splices)
    assert splices == [times[8]]
    for place in (0, 3, 7, 8, 15):
        size = (96, 192) if place < 8 else (96, 144)
        assert roundness(video.fetch(path, times[[place]], *size)[0]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("ratio", [Fraction(0, 1), Fraction(1, 1), Fraction(1000, 1), None])
def test_a_pixel_aspect_that_is_none_or_absurd_is_square(ratio: Fraction | None) -> None:
    assert aspect_of(ratio) == 1.0
    assert View(aspect_of(ratio)).size(96, 144) == (96, 144)


def test_alpha_keeps_its_shape_with_oblong_pixels(tmp_path: Path) -> None:
    rgba = np.concatenate([disc(96, 144) // 2, disc(96, 144, 1.0)[..., :1]], -1)
    write_vp9_alpha(tmp_path / "a.webm", np.stack([rgba] * 4), 8)
    frames, _ = video.read_frames(tmp_path / "a.webm", size=(48, 72), times=[0.0, 0.25])
    assert frames.shape == (2, 48, 72, 4)
    inside = frames[0, ..., 3] > 200
    assert np.abs(frames[0][inside][:, :3].astype(int) - 127).mean() < 6
    assert roundness(frames[0, ..., 3]) == pytest.approx(1, abs=0.06)


def cover(path: Path, *, first: bool) -> None:
    """Put a yellow cover picture into an MP4's tags, before or behind its tracks."""

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", 8 + len(body)) + kind + body

    picture = io.BytesIO()
    Image.new("RGB", (300, 300), (250, 250, 0)).save(picture, "JPEG")
    item = box(b"data", struct.pack(">II", 13, 0) + picture.getvalue())
    handler = box(b"hdlr", bytes(8) + b"mdir" + b"appl" + bytes(9))
    tags = box(b"meta", bytes(4) + handler + box(b"ilst", box(b"covr", item)))
    data, place = path.read_bytes(), 0
    while data[place + 4 : place + 8] != b"moov":
        place += int.from_bytes(data[place : place + 4], "big")
    body = data[place + 8 :]
    header = int.from_bytes(body[:4], "big") if first else len(body)
    body = body[:header] + box(b"udta", tags) + body[header:]
    path.write_bytes(data[:place] + box(b"moov", body))


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_picture_is_not_the_film(first: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", Kind("a.mp4", "libx264", X264, count=12))
    cover(path, first=first)
    assert video.probe(path).num_frames == 12
    times, thumbs = video.scan(path)
    assert numbers(thumbs) == list(range(12)) == numbers(video.read_frames(path)[0])
    assert numbers(video.fetch(path, times[4:], 48, 64)) == list(range(4, 12))
    assert numbers(fetch_matte(path, times[4:], 48, 64)) == list(range(4, 12))


def two_films(
    path: Path, counts: tuple[int, int], small: tuple[int, int] = (24, 32), default: int = 0
) -> Path:
    """First a stream of small frames with numbers from 100, then one of 48x64 from 0."""
    with av.open(str(path), "w") as container:
        streams = []
        for index, (height, width) in enumerate((small, (48, 64))):
            stream = container.add_stream("libx264", rate=10, options=X264)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = av.stream.Disposition(int(index == default))
            streams.append(stream)
        for k in range(max(counts)):
            for stream, count, offset in zip(streams, counts, (100, 0), strict=True):
                if k < count:
                    picture = numbered(offset + k, stream.height, stream.width)
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("end", ["mp4", "mkv", "mov"])
def test_the_best_of_several_streams_is_the_film(end: str, tmp_path: Path) -> None:
    preview = two_films(tmp_path / f"preview.{end}", (12, 12))
    assert numbers(video.scan(preview)[1]) == list(range(12))
    poster = two_films(tmp_path / f"poster.{end}", (12, 1), default=1)
    assert numbers(video.scan(poster)[1]) == list(range(100, 112))
    other = two_films(tmp_path / f"angle.{end}", (12, 12), small=(40, 64))
    assert numbers(video.read_frames(other)[0]) == list(range(100, 112))
    other = two_films(tmp_path / f"angle2.{end}", (12, 12), small=(40, 64), default=1)
    assert numbers(video.read_frames(other)[0]) == list(range(12))


def test_tags_in_any_encoding_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXXXXXXXX"
        stream = container.add_stream("mpeg4", rate=12, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for k in range(12):
            frame = av.VideoFrame.from_ndarray(numbered(k), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    for tag in ("映像の題名".encode("shift_jis"), "XXXXXXXXXé".encode("latin1"), b"\xff" * 10):
        path.write_bytes(data.replace(b"XXXXXXXXXX", tag))
        assert video.probe(path).num_frames == 12
        assert numbers(video.read_frames(path)[0]) == list(range(12))
    named = write(tmp_path / "b.mov", Kind("b.mov", "libx264", X264, count=12))
    data = named.read_bytes()
    assert b"VideoHandler" in data
    named.write_bytes(data.replace(b"VideoHandler", "VidéoHandler".encode("latin1")))
    assert numbers(video.scan(named)[1]) == list(range(12))


def test_only_the_wanted_frames_are_kept_at_the_wanted_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", Kind("a.mp4", "libx264", X264, size=(96, 128)))
    times = video.frame_times(path)
    frames, fps = video.read_frames(path, times=times[[40, 3, 3, 17]], size=(24, 32))
    assert frames.shape == (4, 24, 32, 3) and fps == pytest.approx(12, rel=0.01)
    assert numbers(frames) == [40, 3, 3, 17]
    with pytest.raises(MediaError, match="1 of 2 frames are missing"):
        video.read_frames(path, times=[0.0, 99.0])
    with pytest.raises(MediaError, match="over the limit of 3"):
        video.read_frames(path, times=times[:4], max_frames=3)


def test_frames_are_freed_after_they_were_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", Kind("a.mp4", "libx264", {"crf": "20"}, count=3))
    turned(path, ORIENTATIONS["rot90"][0])
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            before = sys.getrefcount(frame)
            assert view_of(frame, 1.0).transposed
            assert sys.getrefcount(frame) == before


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_motion_jpeg_of_cameras_is_upright_by_its_exif(
    orientation: int, turns: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        container.start_encoding()
        for k in range(4):
            data = io.BytesIO()
            Image.fromarray(numbered(k)).save(data, "JPEG", quality=95, exif=exif)
            packet = av.Packet(data.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 12)
            packet.pts = packet.dts = k
            packet.is_keyframe = True
            container.mux(packet)
    frames = video.read_frames(path)[0]
    assert numbers(np.rot90(frames, -turns, (1, 2))) == [0, 1, 2, 3]
    info = video.probe(path)
    assert (info.height, info.width) == frames.shape[1:3] == ((64, 48) if turns % 2 else (48, 64))
