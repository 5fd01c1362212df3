"""What the page does when things come late, in another order, or not at all; and its bounds."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from layerflow.clip import LayeredClip, composite
from layerflow.corpus.table import encode_row, origin
from pipelines.view.server import Browsed, make_server
from tests.support.browser import Browser, browser
from tests.support.corpora import make_rejected, make_rows, write_corpus

FRAMES, MANY = 8, 130
# Every fetch waits in `held` until it is let go or fails; `through` lets all go at once.
HOLD = """window.held = []; window.real ??= window.fetch; window.errors = [];
window.onerror = (text) => { errors.push(text); };
window.onunhandledrejection = (event) => { errors.push(String(event.reason)); };
window.fetch = (url, options) => new Promise((done, failed) => {
  const go = () => real(url, options).then(done, failed);
  held.push({ url: String(url), go, fail: failed, answer: (status, text) =>
    done(new Response(text, { status })) });
});
window.through = () => { window.fetch = real; for (const one of held.splice(0)) one.go(); };"""
SHOWN = "[...document.querySelectorAll('.card')].map((card) => card.clip.kind)"
LOADED = "return players.size > 0 && [...players].every((player) => player.shot)"
GONE = "new TypeError('Failed to fetch')"


def stepped_clip() -> LayeredClip:
    """Frame ``n`` is grey, of level ``20 + 25 n``."""
    levels = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] * 25 + 20
    grey = np.broadcast_to(levels, (FRAMES, 32, 48, 3)).copy()
    alpha = np.zeros((FRAMES, 32, 48), np.uint8)
    prompts = dict.fromkeys(("foreground", "background", "blended"), "steps of grey")
    return LayeredClip(grey, alpha, grey, composite(grey, alpha, grey), prompts, kind="mined")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served corpus: 130 pasted clips of grey steps, then 6 of all kinds."""
    base = encode_row(stepped_clip(), id="f" * 16, origin=origin("steps.mp4", "0" * 64),
                      quality={}, recipe="0" * 16)  # fmt: skip
    rows = [{**base, "id": f"f{i:015x}", "kind": "pasted"} for i in range(MANY)]
    folder = tmp_path_factory.mktemp("races")
    corpus = write_corpus(folder / "c", [*rows, *make_rows(6)], make_rejected())
    browsed = Browsed(corpus, workers=1)
    with make_server(browsed, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
    browsed.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Browser]:
    """The page with its first clips; nothing may be thrown in it."""
    chromium.resize(1280, 900)
    chromium.open(url)
    chromium.wait(LOADED)
    chromium.run(HOLD)
    yield chromium
    assert chromium.run("return window.errors ?? []") == []
    severe = [one for one in chromium.log("browser") if one["level"] == "SEVERE"]
    assert [one for one in severe if "status of" not in one["message"]] == []


def choose(page: Browser, name: str, value: str) -> None:
    page.run(
        """const element = document.getElementById(arguments[0]);
        element.value = arguments[1];
        element.dispatchEvent(new Event('input', { bubbles: true }));
        element.dispatchEvent(new Event('change', { bubbles: true }))""", name, value,
    )  # fmt: skip


# --- lists ------------------------------------------------------------------------------------


def test_more_is_not_asked_for_while_a_new_list_comes(page: Browser) -> None:
    choose(page, "kind", "mined")
    page.run("refresh(true); document.getElementById('more').click(); through()")
    page.wait(f"return {SHOWN}.length && {SHOWN}.every((kind) => kind === 'mined')")
    assert page.run("return [listed.length, total]") == [2, 2]


def test_the_newest_filters_win(page: Browser) -> None:
    for kind in ("mined", "image"):
        choose(page, "kind", kind)
    page.run("held.filter((one) => one.url.startsWith('rows')).reverse().forEach((o) => o.go())")
    page.wait(f"return {SHOWN}.length === 2")
    page.run("return new Promise((done) => setTimeout(done, 300))")
    assert page.run(f"return {SHOWN}") == ["image", "image"]


def test_a_server_that_has_gone_is_said_and_asked_again(page: Browser) -> None:
    choose(page, "kind", "mined")
    page.run(f"held.forEach((one) => one.fail({GONE}))")
    page.wait("return document.getElementById('count').textContent.includes('still running?')")
    assert page.run(f"return {SHOWN}") == []  # not what other filters gave
    assert page.run("return document.getElementById('more').textContent") == "Try again"
    page.run("held.splice(0); window.fetch = real; document.getElementById('more').click()")
    page.wait(f"return {SHOWN}.join() === 'mined,mined'")
    assert page.run("return document.getElementById('more').hidden")


def test_rejected_rows_come_late_or_not_at_all(page: Browser) -> None:
    reason = page.run("return Object.keys(data.reasons).find((name) => name.startsWith('decode'))")
    page.run("held.splice(0); document.getElementById('rejected-box').open = true")
    choose(page, "reason", reason)
    choose(page, "reason", "")
    page.run("held.reverse().forEach((one) => one.go()); held.splice(0)")
    count = "document.querySelectorAll('#rejected tr').length"
    page.run("return new Promise((done) => setTimeout(done, 500))")
    assert page.run(f"return {count}") == 3
    choose(page, "reason", reason)
    page.run("held.splice(0)[0].answer(500, 'the disk is gone')")
    page.wait("return !document.getElementById('rejected-problem').hidden")
    text = page.run("return document.getElementById('rejected-problem').textContent")
    assert text == "the disk is gone" and page.run(f"return {count}") == 0
    page.run("through(); document.getElementById('more-rejected').click()")
    page.wait(f"return {count} === 1 && document.getElementById('rejected-problem').hidden")


def test_a_tall_screen_is_filled(chromium: Browser, url: str) -> None:
    chromium.resize(1920, 4000)
    chromium.open(url)
    below = "document.getElementById('more').getBoundingClientRect().top > innerHeight"
    chromium.wait(f"return listed.length > 48 && {below}")  # nobody scrolled


# --- one clip ---------------------------------------------------------------------------------


def test_a_clip_is_used_before_it_is_there(page: Browser) -> None:
    page.run("open(listed[0])")
    page.press("2", "b", ".", ",")  # one layer, another backing, frame by frame
    page.run("const bar = document.getElementById('frame'); bar.value = 3; bar.oninput()")
    page.press("0")
    page.run("open(listed[1]); through()")
    page.wait("return opened.player.shot && !document.querySelector('#panels.waiting')")
    assert page.run("return document.getElementById('frame').max") == str(FRAMES - 1)
    page.press("ESCAPE")
    page.wait("return opened === null")


def test_closed_while_it_loads(page: Browser) -> None:
    page.run("open(listed[0]); document.getElementById('detail').close()")
    page.wait("return opened === null")
    page.run("through(); return new Promise((done) => setTimeout(done, 300))")
    assert page.run("return [...players].every((player) => !player.large)")


def test_opened_again_before_closing_was_told(page: Browser) -> None:
    page.run("through(); open(listed[0]); document.getElementById('detail').close();"
             "open(listed[1])")  # fmt: skip
    page.run("return new Promise((done) => setTimeout(done, 300))")
    assert page.run("return opened && opened.clip.index") == 1
    page.wait("return opened.player.shot")
    page.press("ESCAPE")
    page.wait("return opened === null")


def test_a_clip_that_failed_says_so_until_another_is_opened(page: Browser) -> None:
    page.run("open(listed[0]); held.splice(0).forEach((one) => one.answer(422, 'no alpha'))")
    problem = "document.querySelector('#panels .problem')?.textContent"
    page.wait(f"return {problem} === 'No preview: no alpha'")
    page.press("2", "b", ".", "0")
    assert page.run(f"return {problem}") == "No preview: no alpha"
    page.run("through()")
    page.press("ARROW_RIGHT")
    page.wait(f"return !{problem} && opened.player.shot")
    page.press("ESCAPE")
    page.wait("return opened === null")


def test_the_next_clip_is_fetched_when_the_list_ends(page: Browser) -> None:
    page.run("through(); open(listed[listed.length - 1])")
    last = page.run("return opened.clip.index")
    page.press("ARROW_RIGHT")
    page.wait(f"return opened.clip.index === {last + 1} && opened.player.shot")
    page.press("ESCAPE")
    page.wait(f"return document.activeElement.clip?.index === {last + 1}")


def test_the_number_of_a_frame_is_that_of_its_picture(page: Browser) -> None:
    page.run("through(); open(listed[0])")
    page.wait("return opened.player.shot")
    seen = page.driver.execute_async_script(
        """const done = arguments[0], seen = [];
        const look = () => {
          const canvas = document.querySelector('#panels canvas');
          const level = canvas.getContext('2d').getImageData(4, 4, 1, 1).data[0];
          const shown = parseInt(document.getElementById('at').textContent) - 1;
          seen.push([shown, Math.round((level - 20) / 25)]);
          if (seen.length < 90) requestAnimationFrame(look); else done(seen);
        };
        requestAnimationFrame(look);"""
    )
    assert len({shown for shown, _ in seen}) > 3
    assert np.mean([shown == level for shown, level in seen]) > 0.97, seen
    page.press(" ")
    for step in range(FRAMES + 2):
        before = page.run("return opened.player.frame()")
        page.press(".")
        wanted = (before + 1) % FRAMES
        page.wait(f"return document.getElementById('at').textContent === '{wanted + 1} / {FRAMES}'")
        level = page.run("return document.querySelector('#panels canvas').getContext('2d')"
                         ".getImageData(4, 4, 1, 1).data[0]")  # fmt: skip
        assert round((level - 20) / 25) == wanted, step


# --- cards ------------------------------------------------------------------------------------


def test_a_preview_that_failed_is_tried_when_it_is_seen_again(page: Browser) -> None:
    first = "document.querySelector('.card')"
    page.run(f"leave({first}); start({first}); held.splice(0).forEach((o) => o.answer(500, 'no'))")
    page.wait(f"return {first}.querySelector('.problem')?.textContent === 'No preview: no'")
    page.press("3", "0")  # drawing goes on
    page.run(f"through(); leave({first}); start({first})")
    page.wait(f"return {first}.player.shot && !{first}.querySelector('.waiting, .problem')")
    page.wait(f"return {first}.querySelector('canvas').width > 3")


def test_loading_is_shown_until_the_newest_has_loaded(page: Browser) -> None:
    first = "document.querySelector('.card')"
    page.run(f"leave({first}); start({first}); leave({first}); start({first})")
    page.run("held[0].fail(new DOMException('', 'AbortError'))")
    page.run("return new Promise((done) => setTimeout(done, 100))")
    assert page.run(f"return {first}.querySelector('.stage').classList.contains('waiting')")
    page.run("held.splice(0, 1); through()")
    page.wait(f"return !{first}.querySelector('.waiting')")


def test_videos_urls_and_canvases_are_bounded(chromium: Browser, url: str) -> None:
    chromium.resize(1920, 1400)
    chromium.open(url)
    chromium.run(
        """window.urls = new Set();
        const [made, given] = [URL.createObjectURL, URL.revokeObjectURL];
        URL.createObjectURL = (blob) => {
          const one = made.call(URL, blob);
          urls.add(one);
          return one;
        };
        URL.revokeObjectURL = (one) => { urls.delete(one); given.call(URL, one); };
        const size = document.getElementById('size');
        size.value = 140; size.oninput()"""
    )  # fmt: skip
    chromium.wait("return players.size > 80", 60)
    chromium.wait(LOADED, 60)
    assert chromium.run("return document.querySelectorAll('.card .problem').length") == 0
    videos = "[...players].filter((player) => player.media && !player.still).length"
    assert 50 < chromium.run(f"return {videos}") <= 60
    black = """[...document.querySelectorAll('.card')].filter((card) => card.player
      && card.querySelector('canvas').width <= 3).length"""
    assert chromium.run(f"return {black}") == 0  # those without a video have their picture
    chromium.run("const size = $('size'); size.value = 640; size.oninput(); scrollTo(0, 0)")
    chromium.wait("return players.size < 40")
    chromium.wait("return [...players].every((player) => player.media)")  # all play again
    chromium.wait(f"return {videos} <= urls.size && urls.size <= players.size + 2")
    large = "[...document.querySelectorAll('.card canvas')].filter((one) => one.width > 3).length"
    chromium.wait(f"return {large} <= players.size")
    assert [entry for entry in chromium.log("browser") if "WebMediaPlayer" in str(entry)] == []


# --- keys and motion --------------------------------------------------------------------------


def test_one_tab_stop_for_all_cards(page: Browser) -> None:
    page.run("through()")
    stops = "[...document.querySelectorAll('.card')].filter((card) => card.tabIndex === 0)"
    assert page.run(f"return {stops}.map((card) => card.clip.index)") == [0]
    page.press("ARROW_RIGHT", "ARROW_RIGHT")
    assert page.run(f"return {stops}.map((card) => card.clip.index)") == [1]
    page.press("TAB")
    assert page.run("return document.activeElement.closest('.card')") is None
    label = page.run("return document.querySelector('.card').getAttribute('aria-label')")
    assert label == "pasted clip: steps of grey, of steps.mp4"


def test_space_plays_and_pauses_in_an_opened_clip(page: Browser) -> None:
    page.run("through(); open(listed[1])")
    page.wait("return opened.player.shot")
    page.press(" ")
    assert page.run("return [opened.clip.index, state.playing]") == [1, False]
    page.press("?")  # the keys are seen above the clip, and below the bar again when it is closed
    assert page.run("return document.getElementById('detail').contains($('help'))")
    page.press("?", "ESCAPE")
    page.wait("return opened === null && !document.getElementById('detail').contains($('help'))")


def test_nothing_moves_for_those_who_ask_for_that(chromium: Browser, url: str) -> None:
    wanted = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    chromium.open(url)
    chromium.wait(LOADED)
    assert chromium.run("return document.getElementById('play').textContent") == "Play"
    assert chromium.run("return [...players].every((player) => player.media.paused)")
    assert chromium.run("return [...players].every((player) => player.media.currentTime === 0)")
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
