"""The page: what is in it, that hostile text stays text, and how it works in a real browser."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.clip import LayeredClip
from layerflow.corpus.table import encode_row, origin
from layerflow.media.cells import (
    decode_color,
    decode_png,
    encode_alpha,
    encode_preview,
    write_prores4444,
)
from layerflow.media.frame_rate import evenly
from pipelines.view.page import embedded, histogram, write_report
from pipelines.view.server import Browsed, make_server
from pipelines.view.source import PANELS, difference, make_preview, open_source
from tests.support.browser import Browser, browser
from tests.support.corpora import make_rejected, make_rows, moving_clip, write_corpus

HOSTILE = (
    "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>\"'&\u202eabc"
)
SECRET = "</SCRIPT ><!--<script>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(9)
    rows[1] |= {"blended_prompt": HOSTILE, "foreground_prompt": "x" * 100_000}
    rows[1]["origin"] |= {"uri": f"{SECRET}.mp4", "licence": HOSTILE}
    rows[6] |= {"alpha": b"\x1a\x45\xdf\xa3 broken"}
    rejected = [*make_rejected(), {**make_rejected()[0], "reason": HOSTILE, "uri": HOSTILE}]
    return write_corpus(tmp_path_factory.mktemp("report") / "corpus", rows, rejected)


@pytest.fixture(scope="module")
def report(corpus: Path) -> Path:
    out = corpus.parent / "report.html"
    assert write_report(corpus, out, workers=0) == [out, out.with_suffix(".png")]
    return out


def data_of(html: str) -> dict[str, Any]:
    text = html.split('id="data">')[1].split("</script>")[0]
    found: dict[str, Any] = json.loads(text)
    return found


# --- what is written --------------------------------------------------------------------------


def test_the_page_holds_every_clip_and_its_reasons(report: Path) -> None:
    data = data_of(report.read_text())
    assert data["total"] == 9 and len(data["clips"]) == 9
    assert data["kinds"] == {"pasted": 3, "mined": 3, "image": 3}
    assert data["reasons"]["gate: flicker over its bound"] == 2 and data["rejected_total"] == 4
    assert sum(data["histograms"]["flicker"]["bins"]) == 4
    assert "cannot be decoded" in data["clips"][6]["problem"]
    assert data["clips"][2]["preview"]["mime"] == "image/jpeg"
    assert decode_png(report.with_suffix(".png").read_bytes()).shape[2] == 3


def test_hostile_text_cannot_leave_its_json(report: Path) -> None:
    html = report.read_text()
    data = data_of(html)
    assert data["clips"][1]["prompts"]["blended"] == HOSTILE
    assert len(data["clips"][1]["prompts"]["foreground"]) < 5000
    assert SECRET not in html and "<script>window" not in html
    assert "<" not in embedded({"text": HOSTILE}) and json.loads(embedded([HOSTILE])) == [HOSTILE]


def test_the_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_corpus(tmp_path / "c", make_rows(12))
    write_report(path, tmp_path / "few.html", limit=4, workers=0)
    data = data_of((tmp_path / "few.html").read_text())
    assert [clip["index"] for clip in data["clips"]] == [0, 4, 7, 11]
    assert data["total"] == 12 and sum(data["histograms"]["ghost"]["bins"]) == 6
    monkeypatch.setattr("pipelines.view.page.MAX_PREVIEW_BYTES", 20_000)
    write_report(path, tmp_path / "small.html", workers=0)
    assert 0 < len(data_of((tmp_path / "small.html").read_text())["clips"]) < 12


def test_an_empty_corpus_has_a_page(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c", [], make_rejected())
    assert write_report(path, tmp_path / "r.html", workers=0) == [tmp_path / "r.html"]
    assert data_of((tmp_path / "r.html").read_text())["rejected_total"] == 3


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no corpus"):
        write_report(tmp_path, tmp_path / "r.html")


def test_evenly_and_histogram() -> None:
    assert evenly(3, 10) == [0, 1, 2] and evenly(100, 3) == [0, 50, 99] and evenly(0, 3) == []
    shape = histogram([1.0] * 10)
    assert sum(shape["bins"]) == 10 and shape["low"] < shape["high"]
    assert sum(histogram([*range(1000), 1e9])["bins"]) == 1001


def test_preview_panels_hold_their_layers() -> None:
    clip = moving_clip(3)
    preview = make_preview(clip, 32, crf=4)
    frames = decode_color(preview.media)
    assert frames.shape == (5, 2 * 32, 3 * 48, 3) and preview.panel == (32, 48)
    layers = [clip.blended, clip.foreground, None, clip.background, None, clip.recomposed()]
    for place, layer in enumerate(layers):
        y, x = place // 3 * 32, place % 3 * 48
        if layer is not None:
            part = frames[:, y : y + 32, x : x + 48].astype(int)
            assert np.abs(part - layer).mean() < 6, PANELS[place]
    alpha = frames[:, :32, 96:144].mean(axis=3)
    assert np.abs(alpha - clip.alpha).mean() < 6
    assert np.array_equal(difference(clip.blended, clip.blended), np.zeros_like(clip.blended))
    assert difference(np.full((1, 1), 9, np.uint8), np.full((1, 1), 5, np.uint8)) == 32


def write_sample(folder: Path, clip: LayeredClip) -> None:
    rgba = np.concatenate([clip.foreground, clip.alpha[..., None]], axis=3)
    write_prores4444(folder / "foreground.mov", rgba, clip.fps)
    (folder / "alpha.mkv").write_bytes(encode_alpha(clip.alpha, clip.fps))
    (folder / "background.mp4").write_bytes(encode_preview(clip.background, clip.fps))
    (folder / "blended.mp4").write_bytes(encode_preview(clip.blended, clip.fps))
    about = {"prompt": clip.prompts, "given": {"blended": "in.mp4"}, "model": "m", "seed": 3}
    (folder / "sample.json").write_text(json.dumps(about))


def test_samples_are_shown_too(tmp_path: Path) -> None:
    clip = moving_clip(1, height=33, width=47)
    for name in ("s-0", "s-1"):
        write_sample(tmp_path / "samples" / name, clip)
    source = open_source(tmp_path / "samples")
    found = source.clip(1)
    assert np.array_equal(found.alpha, clip.alpha)
    assert np.abs(found.foreground.astype(int) - clip.foreground)[clip.alpha > 250].mean() < 4
    write_report(tmp_path / "samples", tmp_path / "r.html", workers=0)
    clips = data_of((tmp_path / "r.html").read_text())["clips"]
    assert [c["id"] for c in clips] == ["s-0", "s-1"] and "preview" in clips[0]
    assert clips[0]["prompts"] == clip.prompts
    assert clips[0]["source"] == "given blended (in.mp4), model m, seed 3"


# --- the server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(corpus: Path) -> Iterator[str]:
    browsed = Browsed(corpus, workers=1)
    with make_server(browsed, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
    browsed.close()


def get(url: str, host: str | None = None) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_serve_answers_queries(served: str) -> None:
    rows = json.loads(get(f"{served}/rows?kind=mined&sort=-ghost")[1])
    assert rows["total"] == 3 and [r["index"] for r in rows["rows"]] == [7, 1, 4]
    assert json.loads(get(f"{served}/rows?score=ghost&min=2&max=6")[1])["total"] == 2
    rows = json.loads(get(f"{served}/rows?sort=%2Bkind")[1])["rows"]
    assert [r["index"] for r in rows] == [2, 5, 8, 1, 4, 7, 0, 3, 6]  # image, mined, pasted
    assert json.loads(get(f"{served}/rows?text=DISC+5")[1])["rows"][0]["index"] == 5
    assert len(json.loads(get(f"{served}/rows?count=2&offset=8")[1])["rows"]) == 1
    rejected = json.loads(
        get(f"{served}/rejected?reason=gate: flicker over its bound".replace(" ", "+"))[1]
    )
    assert rejected["total"] == 2


def test_serve_makes_previews(served: str) -> None:
    status, media, headers = get(f"{served}/preview/1")
    assert status == 200 and json.loads(headers["X-Preview"])["mime"] == "video/mp4"
    assert len(decode_color(media)) == 5
    assert get(f"{served}/preview/6")[0] == 422  # the row that does not decode
    assert get(f"{served}/preview/1?height=64")[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../../etc/passwd", 404),
        ("/corpus.json", 404),
        ("/preview/../corpus.json", 404),
        ("/preview/99", 404),
        ("/preview/-1", 404),
        ("/preview/1?height=99999", 400),
        ("/preview/1?height=nan", 400),
        ("/rows?min=x&score=ghost", 400),
        ("/rows?offset=inf", 400),
    ],
)
def test_serve_serves_nothing_else(served: str, path: str, status: int) -> None:
    assert get(served + path)[0] == status


def test_serve_answers_for_this_host_only(served: str) -> None:
    assert get(f"{served}/rows", host="evil.example:80")[0] == 403


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clip = moving_clip(0, height=16, width=16)
    base = encode_row(clip, id="0" * 16, origin=origin("a.mp4", ""), quality={}, recipe="r")
    scores = base["quality"]
    rows = (
        {**base, "id": f"{i:016x}", "quality": {**scores, "flicker": i / 10_000}}
        for i in range(10_000)
    )
    return write_corpus(tmp_path_factory.mktemp("large") / "c", rows)


def test_ten_thousand_rows_are_served_lazily(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.process_time()
    browsed = Browsed(large, workers=1)
    assert time.process_time() - started < 20
    assert len(browsed.page) < 200_000  # no row and no media is in the page
    found = browsed.rows({"score": "flicker", "min": "0.5", "sort": "-flicker", "count": "10"})
    assert found["total"] == 5000 and [r["index"] for r in found["rows"]][:2] == [9999, 9998]
    browsed.close()


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


LOADED = """return players.size > 0 &&
  [...players].every((player) => player.shot || player.clip.problem)"""
SHOWN = "return [...document.querySelectorAll('.card')].map((card) => card.clip.index)"
FIRST = """const player = [...players].find((p) => p.clip.index === 0);
  return [player.media.readyState, player.media.currentTime]"""
PIXEL = """const context = document.querySelectorAll('.card canvas')[2].getContext('2d');
  const [width, height] = [context.canvas.width, context.canvas.height];
  return [...context.getImageData(2, 2, 1, 1).data, width, height]"""
CHANGE = """const element = document.getElementById(arguments[0]);
  element.value = arguments[1];
  element.dispatchEvent(new Event('input', { bubbles: true }))"""


def shown(page: Browser, *indices: int) -> None:
    """Wait until the grid holds these clips."""
    page.wait(f"return (() => {{ {SHOWN} }})().join() === {','.join(map(str, indices))!r}")


def load(page: Browser, report: Path) -> None:
    page.open(report.as_uri())
    page.wait(LOADED)


def test_browser_plays_without_a_request(page: Browser, report: Path) -> None:
    load(page, report)
    assert page.requested() == [report.as_uri()]
    assert page.log("browser") == []  # no script error, nothing stopped by the policy
    assert page.run("return window.broken === undefined")
    ready, time = page.run(FIRST)
    assert ready == 4
    page.wait(f"return (() => {{ {FIRST} }})()[1] !== {time}")
    page.press(" ")
    assert page.run("return [...players].every((p) => p.still || !p.media || p.media.paused)")


def test_browser_of_no_clip_shows_the_rejected_rows(page: Browser, tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", [], make_rejected())
    write_report(tmp_path / "c", tmp_path / "r.html", workers=0)
    page.open((tmp_path / "r.html").as_uri())
    page.wait("return document.querySelectorAll('#rejected tr').length === 3")
    assert page.run("return document.getElementById('rejected-box').open")


def test_browser_shows_the_right_pixels(page: Browser, report: Path) -> None:
    load(page, report)
    page.press("2", "b", "b")  # foreground over white
    page.wait(f"return (() => {{ {PIXEL} }})()[0] > 250")
    assert page.run(PIXEL) == [255, 255, 255, 255, 48, 32]
    page.press("3")  # alpha: black outside
    assert max(page.run(PIXEL)[:3]) < 12
    page.press("0")
    assert page.run(PIXEL)[4:] == [96, 64]


def test_browser_filters_sorts_and_shows_text_as_text(page: Browser, report: Path) -> None:
    load(page, report)
    page.run(CHANGE, "kind", "mined")
    shown(page, 1, 4, 7)
    page.run(CHANGE, "sort", "-ghost")
    shown(page, 7, 1, 4)
    assert page.run("return document.querySelectorAll('.prompt')[1].textContent") == HOSTILE
    page.run(CHANGE, "score", "ghost")
    page.run(CHANGE, "min", "5")
    shown(page, 7)
    page.run("document.getElementById('filters').reset()")
    shown(page, *range(9))
    page.run(CHANGE, "sort", "+kind")
    shown(page, 2, 5, 8, 1, 4, 7, 0, 3, 6)
    cells = "return [...document.querySelectorAll('#rejected td')].map((cell) => cell.textContent)"
    assert HOSTILE in page.run(cells) and page.run("return window.broken === undefined")


STOPPED_EARLY = """return (async () => {
  const player = new Player(data.clips[2], false, (text) => { throw new Error(text); });
  while (!player.media) await null;
  const early = !player.media.complete;
  player.play();
  player.draw(true);
  player.stop();
  return [early, !player.shot, player.media === null];
})()"""


def test_browser_a_picture_can_be_stopped_while_it_is_decoded(page: Browser, report: Path) -> None:
    load(page, report)
    assert page.run(STOPPED_EARLY) == [True, True, True]


def test_browser_works_with_the_keyboard_alone(page: Browser, report: Path) -> None:
    load(page, report)
    page.press("ARROW_RIGHT")
    assert page.run("return document.activeElement.clip.index") == 0
    page.press("ARROW_RIGHT", "ENTER")
    page.wait("return document.getElementById('detail').open && opened.player.shot")
    assert "mined" in page.run("return document.getElementById('detail-title').textContent")
    assert page.run("return document.querySelectorAll('#panels canvas').length") == 6
    page.press("4")
    assert page.run("return document.querySelectorAll('#panels canvas').length") == 1
    page.press("0", ".")
    page.wait("return document.getElementById('detail-play').textContent === 'Play'")
    page.press("ARROW_RIGHT")
    page.wait("return document.getElementById('detail-title').textContent.startsWith('image')")
    assert page.run("return document.getElementById('time').hidden")
    page.press("ESCAPE")
    page.wait("return !document.getElementById('detail').open && opened === null")


def test_browser_narrow_screen(page: Browser, report: Path, tmp_path: Path) -> None:
    page.resize(390, 844)
    load(page, report)
    page.run("open(listed[1])")
    page.wait("return opened.player.shot")
    for _ in range(2):  # with the clip open, and the grid alone
        page_width = page.run("return document.documentElement.scrollWidth")
        assert page_width <= page.run("return document.documentElement.clientWidth") == 390
        page.press("ESCAPE")
    assert page.screenshot(tmp_path / "narrow.png").stat().st_size > 20_000
    page.resize(1280, 900)


def test_browser_served_page_loads_what_it_needs(page: Browser, large: Path) -> None:
    page.requested()  # what other pages asked for
    browsed = Browsed(large, workers=1)
    with make_server(browsed, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        page.open(url)
        page.wait("return [...players].some((player) => player.shot)", 30)
        requested = page.requested()
        assert len(requested) < 60 and all(address.startswith(url) for address in requested)
        assert page.run("return listed.length") <= 48
        assert "of 10,000 clips" in page.run("return document.getElementById('count').textContent")
        server.shutdown()
    browsed.close()
