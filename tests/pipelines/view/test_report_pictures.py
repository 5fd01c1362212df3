"""Pictures of the page: screenshots whose pixels must be what the corpus and the design say.

The corpus has flat layers, so that every place of every tile has one right colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerflow.clip import U8, LayeredClip, composite
from layerflow.corpus.table import encode_row, origin
from pipelines.view.page import write_report
from tests.support.browser import Browser, browser
from tests.support.corpora import make_rejected, write_corpus

Colour = tuple[int, int, int]
Box = dict[str, float]

HEIGHT, WIDTH = 96, 144
# kind, foreground, background, score; the second clip's blended is not what its layers make
CLIPS: tuple[tuple[str, Colour, Colour, float], ...] = (
    ("pasted", (220, 40, 40), (40, 70, 200), 0.1),
    ("mined", (235, 200, 30), (20, 130, 120), 0.3),
    ("image", (40, 170, 60), (170, 40, 160), 0.2),
    ("pasted", (250, 250, 250), (110, 60, 20), 0.4),
)
BROKEN = 1
GREYS = {(235, 235, 235), (190, 190, 190)}  # the checkerboard
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
CENTRE, CORNER = (0.5, 0.55), (0.93, 0.93)  # inside the foreground's box, outside it
QUARTERS = {"blended": (0, 0), "foreground": (0.5, 0), "alpha": (0, 0.5), "background": (0.5, 0.5)}
SHADES = {"light": (244, 245, 247), "dark": (21, 23, 27)}  # the page's own colour
ACCENT = {"light": (11, 87, 176), "dark": (124, 183, 255)}

LOADED = """return players.size > 0 && [...players].every((player) => player.shot)
  && document.querySelectorAll('.waiting').length === 0"""
BOXES = """const all = [...document.querySelectorAll(arguments[0])];
return all.filter((one) => one.checkVisibility()).map((element) => {
  const { x, y, width, height } = element.getBoundingClientRect();
  return { x, y, width, height };
}).filter((box) => box.width && box.height)"""
TEXTS = """const all = [...document.querySelectorAll(arguments[0])];
return all.filter((one) => one.checkVisibility()).map((element) => {
  const range = document.createRange();
  range.selectNodeContents(element);
  const box = range.getClientRects()[0];
  return box && { x: box.x, y: box.y, width: box.width, height: box.height,
    text: element.textContent.trim() };
}).filter((box) => box && box.text && box.width && box.y > 0 && box.y + box.height < innerHeight)"""
CHANGE = """const element = document.getElementById(arguments[0]);
  element.value = arguments[1];
  element.dispatchEvent(new Event('input', { bubbles: true }));
  element.dispatchEvent(new Event('change', { bubbles: true }))"""


def flat_clip(kind: str, inside: Colour, outside: Colour, broken: bool) -> LayeredClip:
    """A box of one colour over another; a broken one's right half is 20 brighter than it should."""
    shape = (1 if kind == "image" else 4, HEIGHT, WIDTH, 3)
    foreground, background = (np.full(shape, colour, np.uint8) for colour in (inside, outside))
    alpha = np.zeros(shape[:3], np.uint8)
    alpha[:, 24:72, 40:104] = 255
    blended = composite(foreground, alpha, background)
    if broken:
        blended[:, :, WIDTH // 2 :] += 20
    prompts = dict.fromkeys(("foreground", "background", "blended"), f"a flat {kind} clip")
    return LayeredClip(foreground, alpha, background, blended, prompts, kind=kind)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        encode_row(
            flat_clip(kind, inside, outside, index == BROKEN),
            id=f"{index:016x}",
            origin=origin(f"flat-{index}.mp4", f"{index:064x}", licence="CC0-1.0"),
            quality={"flicker": score},
            recipe="0123456789abcdef",
        )
        for index, (kind, inside, outside, score) in enumerate(CLIPS)
    ]
    folder = tmp_path_factory.mktemp("pictures")
    write_corpus(folder / "flat", rows, make_rejected())
    write_report(folder / "flat", folder / "report.html", workers=0)
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


class Look:
    """The page on a screen of one size, and its picture."""

    def __init__(self, page: Browser, report: Path, folder: Path) -> None:
        self.page, self.report, self.folder = page, report, folder

    def open(self, width: int = 1280, height: int = 900, scheme: str = "dark") -> None:
        self.page.resize(width, height)
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
        self.page.open(self.report.as_uri())
        self.page.wait(LOADED)

    def shoot(self, name: str) -> U8:
        """uint8 ``[H, W, 3]``, one pixel a CSS pixel; drawn anew after what changed last."""
        drawn = "arguments[0] = (done) => requestAnimationFrame(() => requestAnimationFrame(done))"
        self.page.driver.execute_async_script(f"{drawn}; arguments[0](arguments[1])", 0)
        path = self.page.screenshot(self.folder / f"{name}.png")
        return np.asarray(Image.open(path).convert("RGB"))

    def boxes(self, selector: str) -> list[Box]:
        found: list[Box] = self.page.run(BOXES, selector)
        assert found, f"nothing visible is {selector}"
        return found

    def texts(self, selector: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.page.run(TEXTS, selector)
        return found


@pytest.fixture
def look(chromium: Browser, report: Path, tmp_path: Path) -> Look:
    return Look(chromium, report, tmp_path)


# --- what a picture is asked ------------------------------------------------------------------


def near(found: Any, wanted: Colour, far: int = 14) -> bool:
    return bool(np.abs(np.asarray(found, int) - wanted).max() <= far)


def part(picture: U8, box: Box, inset: float = 0) -> U8:
    left, top = round(box["x"] + inset), round(box["y"] + inset)
    right, bottom = round(box["x"] + box["width"] - inset), round(box["y"] + box["height"] - inset)
    found = picture[max(0, top) : bottom, max(0, left) : right]
    assert found.size, f"{box} is not in the picture"
    return found


def at(picture: U8, box: Box, place: tuple[float, float]) -> Colour:
    """The middle colour of 5 x 5 pixels at a place given as a share of the box."""
    x, y = (
        round(box[a] + box[b] * p) for a, b, p in zip("xy", ("width", "height"), place, strict=True)
    )
    assert 2 <= x < picture.shape[1] - 2 and 2 <= y < picture.shape[0] - 2, (box, place)
    red, green, blue = np.median(picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3), axis=0)
    return int(red), int(green), int(blue)


def quarter(box: Box, name: str) -> Box:
    x, y = QUARTERS[name]
    half = {"width": box["width"] / 2, "height": box["height"] / 2}
    return {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], **half}


def assert_panel(picture: U8, box: Box, name: str, clip: int) -> None:
    """One layer's tile holds its colours, inside the foreground's box and outside it."""
    _, inside, outside, _ = CLIPS[clip]
    centre, corner = at(picture, box, CENTRE), at(picture, box, CORNER)
    if name == "blended" and clip == BROKEN:
        corner = tuple(value - 20 for value in corner)  # type: ignore[assignment]
        centre = at(picture, box, (0.4, 0.55))
    wanted = {
        "alpha": (WHITE, BLACK),
        "background": (outside, outside),
        "difference": (BLACK, BLACK),
    }.get(name, (inside, outside))
    assert near(centre, wanted[0]), (name, clip, centre, wanted)
    if name != "foreground":
        assert near(corner, wanted[1]), (name, clip, corner, wanted)
        return
    tiles = part(picture, box)[:, -max(16, round(box["width"] * 0.2)) :].reshape(-1, 3)
    for grey in GREYS:  # both fields of the checkerboard, and nothing else
        assert np.mean([near(pixel, grey, 6) for pixel in tiles[::7]]) > 0.3, (clip, grey)


def luminance(picture: U8) -> np.ndarray:
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    value = picture / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ (0.2126, 0.7152, 0.0722))


def assert_readable(picture: U8, texts: list[dict[str, Any]], contrast: float = 4.5) -> None:
    """Some pixels of every text differ from others of its line as WCAG 2 (AA) wants text to."""
    assert texts
    for text in texts:
        light = luminance(part(picture, text))
        ratio = (light.max() + 0.05) / (light.min() + 0.05)
        assert ratio >= contrast, (text["text"], ratio)


def assert_apart(boxes: list[Box]) -> None:
    for a, b in combinations(boxes, 2):
        beside = a["x"] + a["width"] <= b["x"] + 0.5 or b["x"] + b["width"] <= a["x"] + 0.5
        below = a["y"] + a["height"] <= b["y"] + 0.5 or b["y"] + b["height"] <= a["y"] + 0.5
        assert beside or below, f"{a} and {b} overlap"


def assert_inside(boxes: list[Box], width: float) -> None:
    for box in boxes:
        assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5, f"{box} sticks out"


def has(picture: U8, colour: Colour) -> bool:
    """Whether a tile's worth of pixels has this colour."""
    some = picture[::3, ::3].astype(np.int16)
    return bool((np.abs(some - colour).max(axis=2) <= 14).sum() > 100)


# --- the pictures -----------------------------------------------------------------------------

CONTROLS = "nav button, nav select, nav input, #filters select, #filters input, #filters button"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_grid(look: Look, scheme: str) -> None:
    look.open(height=1100, scheme=scheme)
    look.page.press("?")  # the keys
    picture = look.shoot(f"grid-{scheme}")
    assert near(picture[5, 640], SHADES[scheme], 2) and near(picture[-5, 3], SHADES[scheme], 2)
    canvases, cards = look.boxes(".card canvas"), look.boxes(".card")
    assert len(canvases) == len(CLIPS) and canvases[0]["width"] > 300
    for clip, box in enumerate(canvases):
        for name in QUARTERS:
            assert_panel(picture, quarter(box, name), name, clip)
    texts = look.texts("h1, #summary, #count, #help, label, summary, button, .card p, .stage span")
    assert {"blended", "foreground", "alpha", "background"} <= {text["text"] for text in texts}
    assert_readable(picture, texts)
    assert_apart(cards)
    assert_apart(look.boxes(CONTROLS))
    assert_apart(look.boxes("header, nav, #help, #filters, #scores-box, main, #rejected-box"))
    assert_inside([*cards, *look.boxes(f"{CONTROLS}, #help")], 1280)
    for box, card in zip(canvases, cards, strict=True):
        assert card["x"] <= box["x"] and box["width"] <= card["width"]


def test_focus_is_seen(look: Look) -> None:
    look.open()
    look.page.press("ARROW_RIGHT", "ARROW_RIGHT")  # the second card
    picture = look.shoot("focus")

    def ring(box: Box) -> U8:
        grown = {"x": box["x"] - 4, "y": box["y"] - 4, "width": box["width"] + 8}
        return part(picture, {**grown, "height": 3}, 0)

    lit = [np.mean([near(p, ACCENT["dark"], 30) for p in ring(box).reshape(-1, 3)])
           for box in look.boxes(".card")]  # fmt: skip
    assert lit[1] > 0.5 and max(lit[0], lit[2], lit[3]) < 0.1


def test_one_clip(look: Look) -> None:
    look.open()
    names = ("blended", "foreground", "alpha", "background", "difference", "recomposed")
    dark: dict[int, float] = {}
    for clip in (0, BROKEN):
        look.page.run("open(listed[arguments[0]])", clip)
        look.page.wait("return opened.player.shot")
        picture = look.shoot(f"clip-{clip}")
        figures = look.boxes("#panels figure")
        assert len(figures) == 6
        panels = dict(zip(names, look.boxes("#panels canvas"), strict=True))
        for name, box in panels.items():
            if name != "difference":
                assert_panel(picture, box, name, clip)
        dark[clip] = float(np.percentile(part(picture, panels["difference"], 3), 99))
        assert_apart(figures)
        assert_apart(look.boxes("#detail > .bar > *"))
        (dialog,) = look.boxes("#detail")
        assert_inside([dialog], 1280)
        assert all(dialog["x"] < box["x"] and box["width"] < dialog["width"] / 3 for box in figures)
        assert_readable(
            picture, look.texts("#detail h2, #detail figcaption, dt, dd, #close, #next")
        )
    assert dark[0] < 32 and dark[BROKEN] > 120, dark


def test_one_layer_and_what_is_behind_it(look: Look) -> None:
    look.open()
    look.page.run("open(listed[0])")
    look.page.wait("return opened.player.shot")
    look.page.press("2")
    for backing in (BLACK, WHITE, (0, 177, 64)):
        look.page.press("b")
        picture = look.shoot(f"backing-{backing[1]}")
        (box,) = look.boxes("#panels canvas")
        assert near(at(picture, box, (0.8, 0.9)), backing), backing  # the box is wider than it
        assert near(at(picture, box, CENTRE), CLIPS[0][1])
    look.page.press("5")
    (box,) = look.boxes("#panels canvas")
    assert near(at(look.shoot("difference"), box, CENTRE), BLACK, 32)


def test_filters(look: Look) -> None:
    look.open()
    whole = look.shoot("all")
    assert all(has(whole, outside) for _, _, outside, _ in CLIPS)
    look.page.run(CHANGE, "kind", "pasted")
    look.page.run(CHANGE, "sort", "-flicker")
    look.page.wait(LOADED)
    picture = look.shoot("pasted")
    for kind, _, outside, _ in CLIPS:
        assert has(picture, outside) == (kind == "pasted")
    for box, clip in zip(look.boxes(".card canvas"), (3, 0), strict=True):
        assert_panel(picture, quarter(box, "background"), "background", clip)
    scores = look.texts(".card .title small")
    assert [text["text"] for text in scores] == ["flicker 0.4", "flicker 0.1"]
    assert_readable(picture, scores)


def test_nothing_passes(look: Look) -> None:
    look.open()
    look.page.run(CHANGE, "text", "there is no such clip")
    picture = look.shoot("nothing")
    assert not any(has(picture, outside) for _, _, outside, _ in CLIPS)
    texts = look.texts("#empty p, #empty button, #count")
    assert [text["text"] for text in texts] == [
        "0 of 4 clips", "None of the 4 clips passes the filters.", "Reset the filters",
    ]  # fmt: skip
    assert_readable(picture, texts)
    look.page.run("document.querySelector('#empty button').click()")
    look.page.wait(LOADED)
    assert all(has(look.shoot("again"), outside) for _, _, outside, _ in CLIPS)


def test_narrow_screen(look: Look) -> None:
    look.open(390, 844)
    picture = look.shoot("narrow")
    (card, *_) = look.boxes(".card")
    assert card["width"] > 350 and card["y"] < 844 / 2  # a clip is seen without scrolling
    for name in QUARTERS:
        assert_panel(picture, quarter(look.boxes(".card canvas")[0], name), name, 0)
    assert_readable(picture, look.texts("h1, #summary, #count, label, summary, button, .card p"))
    look.page.run("document.getElementById('filters-title').click()")
    controls = look.boxes(CONTROLS)
    assert len(controls) == 14
    assert_inside([*controls, *look.boxes(".card, header, main")], 390)
    assert_apart(controls)
    assert all(box["height"] >= 32 or box["width"] > 90 for box in controls)
    assert_readable(look.shoot("narrow-filters"), look.texts("#filters label"))
    look.page.run("open(listed[0])")
    look.page.wait("return opened.player.shot")
    picture = look.shoot("narrow-clip")
    panels = look.boxes("#panels canvas")
    assert_panel(picture, panels[0], "blended", 0)
    assert_panel(picture, panels[2], "alpha", 0)
    bar = look.boxes("#detail > .bar > *")
    assert_inside([*bar, *look.boxes("#detail figure")], 390)
    assert_apart(bar)
    assert_apart(look.boxes("#detail figure"))
    assert look.page.run("return document.documentElement.scrollWidth") == 390
