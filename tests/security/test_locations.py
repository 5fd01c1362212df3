"""Attacks by names: rows, sidecars, mattes and links that lead out; URLs with secrets.

Each entry of ``ATTACKS`` is a sentence, what a stranger puts into a folder of videos beside
``own.mp4``, and what must happen. Outside lies ``secret/``: its film, text and table must not show
in anything that mining lists, plans or puts on record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from layerflow.corpus.table import origin, rejected_row
from layerflow.locations import below, clean_uri, is_inside, locate, unescape_name, without_secrets
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from manifests.mine import MineOptions
from pipelines.engine.jobs import Unit
from pipelines.inputs.layouts import group_files
from pipelines.inputs.listing import list_sources, matte_beside
from pipelines.inputs.prompts import MAX_SIDECAR_BYTES, read_prompt_table
from pipelines.inputs.sources import list_foregrounds, prompt_of
from pipelines.mine.plan import plan_units

SECRET = "the password is swordfish"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{0}\n#EXT-X-ENDLIST\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
MPD = '<?xml version="1.0"?>\n<MPD profiles="urn:mpeg:dash:profile:full:2011">{0}</MPD>'


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(10):
            picture = np.full((32, 32, 3), 20 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


@dataclass
class Place:
    """root: the stranger's folder. secret: the folder outside it."""

    root: Path
    secret: Path

    def table(self, *rows: dict[str, Any], name: str = "list.jsonl") -> Path:
        path = self.root / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def link(self, name: str, target: Path | str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        return path

    def text(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@pytest.fixture
def place(tmp_path: Path, film: bytes) -> Place:
    root, secret = tmp_path / "root", tmp_path / "secret"
    for folder in (root, secret):
        folder.mkdir()
    (root / "own.mp4").write_bytes(film)
    (secret / "film.mp4").write_bytes(film)
    (secret / "film.mask.mkv").write_bytes(film)
    (secret / "text.txt").write_text(SECRET)
    (secret / "text.json").write_text(json.dumps({"blended": SECRET}))
    return Place(root, secret)


def planned(item: Path) -> list[Unit]:
    options = MineOptions.model_validate(
        {"inputs": [str(item)], "out": "out", "size": "32x32", "licence": "CC0-1.0"}
    )
    return plan_units(list_sources([str(item)]), options)


Make = Callable[[Place], Path]


def refused(make: Make, words: str) -> Callable[[Place], None]:
    """The whole input is refused, with a reason that has the words."""

    def check(place: Place) -> None:
        with pytest.raises(ValueError, match=words) as error:
            planned(make(place))
        assert SECRET not in str(error.value)

    return check


def reported(make: Make, words: str, uri: str = "own.mp4") -> Callable[[Place], None]:
    """One input is turned down with a reason that has the words; nothing of the secret is there."""

    def check(place: Place) -> None:
        units = planned(make(place))
        assert SECRET not in json.dumps([unit.payload for unit in units])
        (problem,) = {unit.payload["problem"] for unit in units if unit.payload["uri"] == uri}
        assert problem is not None and words in problem

    return check


def left_out(make: Make, *uris: str) -> Callable[[Place], None]:
    """Only these inputs are listed."""

    def check(place: Place) -> None:
        units = planned(make(place))
        assert [unit.payload["uri"] for unit in units] == list(uris)
        assert SECRET not in json.dumps([unit.payload for unit in units])

    return check


def row(video: Callable[[Place], str]) -> Make:
    return lambda place: place.table({"video": video(place)})


def beside(name: str, target: str) -> Make:
    def make(place: Place) -> Path:
        place.link(name, place.secret / target)
        return place.root

    return make


def holding(name: str, content: Callable[[Place], str | bytes]) -> Make:
    def make(place: Place) -> Path:
        place.text(name, content(place))
        return place.root

    return make


def parent_climb(place: Place) -> Path:
    place.link("up", place.root.parent)
    return place.table({"video": "up/secret/film.mp4"})


def cache(blob: str) -> Make:
    """A snapshot as the Hub's cache has it, of which one link goes elsewhere."""

    def make(place: Place) -> Path:
        snapshot = place.root / "datasets--a--b/snapshots/0123"
        blobs = place.root / "datasets--a--b/blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        os.link(place.root / "own.mp4", blobs / "9f8e")
        (blobs / "hop").symlink_to(place.secret / "film.mp4")
        (snapshot / "clip.mp4").symlink_to("../../blobs/9f8e")
        (snapshot / "other.mp4").symlink_to(blob.format(place.secret))
        return snapshot

    return make


OUT = "leads out"
FOREIGN = "no URL that a row may name"
ATTACKS: list[tuple[str, Callable[[Place], None]]] = [
    ("a row names a file: URL outside its folder",
     refused(row(lambda p: f"file://{p.secret}/film.mp4"), OUT)),
    ("a row names a file: URL of localhost, in capitals and percent signs",
     refused(row(lambda p: f"FILE://localhost{p.secret}/f%69lm.mp4"), OUT)),
    ("a row names a file: URL with one slash",
     refused(row(lambda p: f"file:{p.secret}/film.mp4"), OUT)),
    ("a row names a local: URL, fsspec's other word for file:",
     refused(row(lambda p: f"local://{p.secret}/film.mp4"), OUT)),
    ("a row chains a cache over a file: URL",
     refused(row(lambda p: f"simplecache::file://{p.secret}/film.mp4"), FOREIGN)),
    ("a row names a member of a local archive",
     refused(row(lambda p: f"zip://film.mp4::file://{p.secret}/a.zip"), FOREIGN)),
    ("a row names a decoder's own protocol",
     refused(row(lambda p: f"concat://{p.secret}/film.mp4|x"), FOREIGN)),
    ("a row names an absolute path", refused(row(lambda p: f"{p.secret}/film.mp4"), OUT)),
    ("a row climbs out with dots", refused(row(lambda _: "a/../../secret/film.mp4"), OUT)),
    ("a row climbs out with back slashes", refused(row(lambda _: "..\\secret\\film.mp4"), OUT)),
    ("a row goes through a linked folder", refused(parent_climb, OUT)),
    ("a row's name holds a NUL", refused(row(lambda _: "own.mp4\0.txt"), "control character")),
    ("a row's name is a megabyte long", refused(row(lambda _: "a" * (1 << 20)), "longer than")),
    ("a row names an HLS playlist",
     reported(lambda p: (p.text("l.m3u8", HLS.format(f"{p.secret}/film.mp4")),
                         p.table({"video": "l.m3u8"}))[1], "playlist", "l.m3u8")),
    ("a film is an HLS playlist in truth",
     reported(holding("own.mp4", lambda p: HLS.format(f"{p.secret}/film.mp4")), "playlist")),
    ("a film is a DASH manifest in truth",
     reported(holding("own.mp4", lambda p: MPD.format(f"file://{p.secret}/")), "playlist")),
    ("a film is an ffconcat script in truth",
     reported(holding("own.mp4", lambda p: f"ffconcat version 1.0\nfile {p.secret}/film.mp4\n"),
              "playlist")),
    ("a film is an SDP description that waits on the network", reported(
        holding("own.mp4", lambda _: SDP), "playlist")),
    ("a script is hidden behind a byte order mark and blank lines",
     reported(holding("own.mp4", lambda p: b"\xef\xbb\xbf\n\nffconcat version 1.0\n"), "playlist")),
    ("a film is any other text", reported(holding("own.mp4", lambda _: "file film.mp4\n"), "text")),
    ("a text sidecar is a link to a secret", reported(beside("own.txt", "text.txt"), OUT)),
    ("a JSON sidecar is a link to a secret", reported(beside("own.json", "text.json"), OUT)),
    ("a sidecar is larger than a sidecar may be",
     reported(holding("own.txt", lambda _: "x" * (MAX_SIDECAR_BYTES + 1)), "over the limit")),
    ("a sidecar is nested a hundred thousand deep",
     reported(holding("own.json", lambda _: "[" * 100_000), "nested")),
    ("a film is a link to a film elsewhere", left_out(beside("x.mp4", "film.mp4"), "own.mp4")),
    ("a folder is a link to a folder elsewhere",
     left_out(lambda p: (p.link("sub", p.secret), p.root)[1], "own.mp4")),
    ("a link leads to itself",
     left_out(lambda p: (p.link("x.mp4", "x.mp4"), p.root)[1], "own.mp4")),
    ("a folder is a link to its own parent",
     left_out(lambda p: (p.link(".a/up", p.root), p.link("b", ".a"), p.root)[2], "own.mp4")),
    ("a snapshot of the Hub's cache has a link that leaves the cache",
     left_out(cache("{0}/film.mp4"), "clip.mp4")),
    ("a blob of the Hub's cache is a link itself", left_out(cache("../../blobs/hop"), "clip.mp4")),
]  # fmt: skip


@pytest.mark.parametrize("check", [a[1] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
def test_attacks_by_names(check: Callable[[Place], None], place: Place) -> None:
    check(place)


def test_a_remote_row_takes_no_sidecar_of_the_working_folder(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.secret)
    (unit,) = planned(place.table({"video": "https://host/text.mp4"}))
    assert SECRET not in json.dumps(unit.payload)


def test_a_matte_that_is_a_link_out_is_refused(place: Place) -> None:
    place.link("own.mask.mkv", place.secret / "film.mask.mkv")
    with pytest.raises(ValueError, match=OUT):
        matte_beside(place.root / "own.mp4", place.root)


def test_sidecars_of_pasted_and_packed_files_stay_inside_too(place: Place) -> None:
    place.link("own.txt", place.secret / "text.txt")
    (source,) = list_foregrounds([str(place.root)], "off")
    with pytest.raises(ValueError, match=OUT):
        prompt_of(source, "foreground")
    place.link("film.png", place.secret / "film.mp4")
    assert [group.uri for group in group_files(place.root)] == ["own.mp4"]


def test_a_playlist_is_not_opened_by_any_request(place: Place) -> None:
    path = place.text("l.mkv", HLS.format(f"{place.secret}/film.mp4"))
    with Decoder() as decoder:
        for ask in (decoder.probe, decoder.duration, decoder.scan, decoder.read_frames):
            with pytest.raises(MediaError, match="playlist"):
                ask(path)


def test_what_belongs_together_may_be_linked(place: Place, film: bytes) -> None:
    """Links inside the root, a file: URL inside it, a cache's own blobs and a data store."""
    (place.root / ".store").mkdir()
    (place.root / ".store/k.mp4").write_bytes(film + b"x")
    place.link("films", ".store")
    place.link("own.txt", "captions.txt")
    place.text("captions.txt", "a grey square")
    units = planned(place.root)
    assert [u.payload["uri"] for u in units] == ["films/k.mp4", "own.mp4"]
    assert units[1].payload["prompts"]["blended"] == "a grey square"
    for name in (f"file://{place.root}/own.mp4", "./own.mp4", f"{place.root}/own.mp4"):
        (unit,) = planned(place.table({"video": name}))
        assert (unit.payload["uri"], unit.payload.get("problem")) == ("own.mp4", None)
    snapshot = cache("../../blobs/9f8e")(place)
    (snapshot / "clip.txt").symlink_to("../../blobs/cc")
    (snapshot / "../../blobs/cc").write_text("a grey film")
    (unit,) = planned(snapshot)  # clip.mp4 and other.mp4 are one file
    assert unit.payload["prompts"]["blended"] == "a grey film"
    assert is_inside(snapshot / "clip.mp4", snapshot)


URLS = [
    ("https://user:pass@host/a.mp4", "https://host/a.mp4"),
    ("https://user:p/a?s#s@host:8080/a.mp4", "https://host:8080/a.mp4"),
    ("s3://KEY:SECRET@bucket/a.mp4", "s3://bucket/a.mp4"),
    ("https://h/a.mp4?X-Amz-Signature=0a&X-Amz-Credential=k&v=7", "https://h/a.mp4?v=7"),
    ("https://h/a.mp4?sv=1&sig=b%2F&se=2030", "https://h/a.mp4"),
    ("https://h/a.mp4?TOKEN", "https://h/a.mp4"),
    ("https://h/a.mp4#access_token=t", "https://h/a.mp4"),
    ("https://h/watch?v=abc&list=secret", "https://h/watch?v=abc"),
    ("https://h/a;jsessionid=9/b.mp4", "https://h/a/b.mp4"),
    ("zip://a.mp4::https://u:p@h/a.zip?sig=1", "zip://a.mp4::https://h/a.zip"),
    ("hf://datasets/me/films@main/a@2x.mp4", "hf://datasets/me/films@main/a@2x.mp4"),
    ("gs://bucket/what? #1.mp4", "gs://bucket/what? #1.mp4"),
    ("folder/a@b?c=d.mp4", "folder/a@b?c=d.mp4"),
]


@pytest.mark.parametrize(("url", "stored"), URLS)
def test_urls_go_on_record_without_secrets(url: str, stored: str) -> None:
    assert clean_uri(url) == stored and clean_uri(stored) == stored
    assert origin(url, "", parents=[url])["uri"] == stored
    assert origin(url, "", parents=[url])["parents"] == [stored]
    if " " not in url:
        row = rejected_row(url, "read", f"at '{url}', status 403", kind="mined", recipe="")
        assert (row["uri"], row["reason"]) == (stored, f"at '{stored}', status 403")


def test_errors_and_plans_show_no_secret(place: Place) -> None:
    url = "https://user:hunter2@host.invalid/a.mp4?sig=hunter2"
    with pytest.raises(ValueError) as error:
        list_sources([f"memory://{'x' * 3}:hunter2@nothing/here?sig=hunter2"])
    assert "hunter2" not in str(error.value)
    with pytest.raises(ValueError, match="no URL") as error:
        locate("gopher://user:hunter2@host/x", place.root)
    assert "hunter2" not in str(error.value)
    units = planned(place.table({"video": url}, {"video": url.replace("hunter2", "hunter3")}))
    assert [unit.payload["uri"] for unit in units] == ["https://host.invalid/a.mp4"] * 2
    assert len({unit.key for unit in units}) == 2  # two addresses are two units
    assert without_secrets("(//user:hunter2@host/x)") == "(//host/x)"


def test_bytes_that_are_not_utf8_are_escaped_so_that_names_stay_apart(place: Place) -> None:
    names = [b"Mu\xf1oz.mp4", "Mu\ufffdf1oz.mp4".encode(), b"Mu\xf2oz.mp4", "Muñoz.mp4".encode()]
    paths = [place.root / os.fsdecode(name) for name in names]
    uris = [below(path, place.root) for path in paths]
    assert len(set(uris)) == 4 and uris[3] == "Muñoz.mp4"
    assert [os.fsencode(unescape_name(uri)) for uri in uris] == names
    assert [uri.encode() for uri in uris]
    paths[0].write_bytes((place.root / "own.mp4").read_bytes() + b"1")
    assert uris[0] in [unit.payload["uri"] for unit in planned(place.root)]
    assert uris[0] in [group.uri for group in group_files(place.root)]


def test_a_table_that_unpacks_to_more_than_a_table_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("pipelines.inputs.rows.MAX_TABLE_BYTES", 1 << 20)
    text = pa.array(["x" * (1 << 14)] * 100)
    table = pa.table({"video": pa.array(["own.mp4"] * 100), "blended": text})
    pq.write_table(table, place.root / "t.parquet", use_dictionary=False, compression="zstd")
    assert (place.root / "t.parquet").stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="over the limit"):
        read_prompt_table(place.root / "t.parquet")
