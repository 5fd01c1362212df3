"""What the page shows of clips with several foregrounds: corpora, latents, contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from layerflow.clip import BLENDED
from layerflow.media.cells import decode_color
from layerflow.media.contact_sheet import contact_sheet, shown_layers
from layerflow.media.layer_stack import stack_of
from layerflow.model.presets import init_directory
from pipelines.encode.job import run_encode
from pipelines.view.page import write_report
from pipelines.view.source import PANELS, make_preview, open_source
from tests.support.browser import browser
from tests.support.several import COLOURS, several, several_corpus


def test_objects_have_panels_with_their_colour_and_alpha(tmp_path: Path) -> None:
    corpus = several_corpus(tmp_path / "c", 2, 1)
    source = open_source(corpus.path)
    preview = make_preview(source.clip(0), 32, crf=4, stack=source.stack(0))
    more = ("object 1", "alpha of object 1", "object 2", "alpha of object 2")
    assert preview.panels == (*PANELS, *more) and preview.plain()["panels"] == preview.panels
    frames = decode_color(preview.media)
    cell = preview.cell
    assert frames.shape[1:3] == (4 * cell[0], 3 * cell[1])
    _, objects = several(2)
    for place, item in ((6, objects[0]), (8, objects[1])):
        y, x = place // 3 * cell[0], place % 3 * cell[1]
        part = frames[:, y : y + 32, x : x + 40].astype(int)
        assert np.abs(part - COLOURS[item.order]).mean() < 8
        y, x = (place + 1) // 3 * cell[0], (place + 1) % 3 * cell[1]
        assert np.abs(frames[:, y : y + 32, x : x + 40].mean(3) - item.amodal).mean() < 8
    assert source.stack(1) is None
    assert make_preview(source.clip(1), 32, stack=source.stack(1)).panels == PANELS
    pages = write_report(corpus.path, tmp_path / "r.html", workers=0)
    assert "alpha of object 2" in pages[0].read_text()


def test_latents_of_several_foregrounds_are_shown_layer_by_layer(tmp_path: Path) -> None:
    model = init_directory(tmp_path / "model", "tiny")
    corpus = several_corpus(tmp_path / "c", 2)
    out = tmp_path / "l"
    run_encode([corpus.path], model=model, out=out, layers="rgbax2", workers=0, quiet=True)
    for source in (open_source(out), open_source(out, model)):
        (row,) = source.rows()
        assert row["more"] == {"foreground.2 prompt": "box 1"}
        assert row["prompts"]["foreground"] == "box 0" and "std_alpha.2" in row["scores"]
        stack = source.stack(0)
        assert stack is not None and stack.foregrounds == ("foreground", "foreground.2")
    _, objects = several(2)
    front = stack.layer("alpha.2") > 127
    assert (front == (objects[1].amodal > 127)).mean() > 0.95
    inside = objects[1].amodal > 0
    assert np.abs(stack.layer("foreground.2")[inside].astype(int) - COLOURS[1]).mean() < 25
    assert np.abs(source.clip(0).layer(BLENDED).astype(int) - several(2)[0].blended).mean() < 15


def test_a_sheet_has_a_column_for_each_layer_that_some_clip_has() -> None:
    clip, _ = several(1)
    narrow = contact_sheet([clip], height=32)
    assert narrow.tobytes() == contact_sheet([stack_of(clip)], height=32).tobytes()
    assert shown_layers([clip]) == ["blended", "foreground", "alpha", "background"]


def test_an_open_clip_shows_its_objects_over_a_backing(tmp_path: Path) -> None:
    corpus = several_corpus(tmp_path / "c", 2)
    write_report(corpus.path, tmp_path / "r.html", workers=0)
    with browser(tmp_path) as page:
        page.open((tmp_path / "r.html").as_uri())
        page.run("open(listed[0])")
        page.wait("return document.querySelectorAll('#panels figure').length === 10")
        page.wait("return opened.player.shot")
        texts = "return [...document.querySelectorAll('figcaption')].map(f => f.textContent)"
        names = page.run(texts)
        assert names[6:] == ["object 1", "alpha of object 1", "object 2", "alpha of object 2"]
        page.run("opened.player.draw(true)")
        script = """
            const canvas = document.querySelectorAll('#panels canvas')[8];
            return [...canvas.getContext('2d').getImageData(...arguments, 1, 1).data].slice(0, 3);
        """
        inside, outside = page.run(script, 22, 16), page.run(script, 2, 2)
        assert max(abs(a - b) for a, b in zip(inside, COLOURS[1], strict=True)) < 40, inside
        assert min(outside) > 170 and max(outside) - min(outside) < 12  # the checkerboard
