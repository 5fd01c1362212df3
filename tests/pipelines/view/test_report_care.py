"""What a person decides on the page: flags, reasons, sources, two corpora, corpora elsewhere."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.log import commit
from layerflow.corpus.scores import SCORES
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.corpus.writer import logged
from layerflow.media.cells import decode_color
from pipelines.view.page import gate_limits, write_report
from pipelines.view.pair import PairSource
from pipelines.view.server import Browsed, make_server
from pipelines.view.source import CorpusSource, make_preview, open_source, read_preview
from tests.support.browser import Browser, browser
from tests.support.corpora import make_rows, write_corpus

CARDS = "return [...document.querySelectorAll('.card')].map((card) => card.clip.index)"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(8)
    rows[1]["quality"] |= {"flicker": None, "ghost": 0.9, "motion": 5.0, "seam": None}
    return write_corpus(tmp_path_factory.mktemp("care") / "c", rows)


@pytest.fixture(scope="module")
def other(corpus: Path) -> Path:
    """Seven of the same ids, with the layers of others."""
    rows = make_rows(9)[1:8]
    media = ("foreground", "alpha", "background", "blended")
    shown = make_rows(8)[4]
    for row in rows:
        if row["kind"] == "mined":
            row |= {layer: shown[layer] for layer in media}
    rows.append({**make_rows(1)[0], "id": "f" * 16})
    return write_corpus(corpus.parent / "other", rows)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(corpus: Path) -> Path:
    return write_report(corpus, corpus.parent / "report.html", workers=1)[0]


def load(page: Browser, report: Path, address: str = "") -> None:
    page.open("about:blank")
    page.open(report.as_uri() + address)
    page.wait("return document.querySelectorAll('.card').length > 0")


# ---- flags --------------------------------------------------------------------------------------


def test_flags_are_set_by_a_key_saved_as_ids_and_kept(page: Browser, report: Path) -> None:
    load(page, report)
    page.run("""window.saved = [];
      const made = URL.createObjectURL.bind(URL);
      URL.createObjectURL = (blob) => {
        if (blob.type === 'text/plain') saved.push(blob);
        return made(blob);
      };
      HTMLAnchorElement.prototype.click = function () { window.named = this.download; };""")
    page.press("ARROW_RIGHT", "f", "ARROW_RIGHT", "ARROW_RIGHT", "f", "ARROW_RIGHT", "f", "f")
    page.run("$('save-flags').click()")
    page.wait("saved.at(-1).text().then((text) => { window.text = text; }); return window.text")
    flagged = page.run("return [...document.querySelectorAll('.flagged')].map((c) => c.clip.id)")
    assert len(flagged) == 2 and page.run("return text") == "".join(f"{id}\n" for id in flagged)
    assert page.run("return named") == "c-flagged.txt"
    load(page, report)
    again = page.run("return [...document.querySelectorAll('.flagged')].map((c) => c.clip.id)")
    assert again == flagged
    assert page.run("return $('save-flags').textContent") == "Save 2 flagged ids"
    page.run("$('clear-flags').click()")
    assert page.run("return flagged.size + document.querySelectorAll('.flagged').length") == 0


def test_an_open_clip_is_flagged_too(page: Browser, report: Path) -> None:
    load(page, report)
    page.run("open(listed[3])")
    page.press("f")
    assert page.run("return [...flagged]") == [f"{3:016x}"]
    assert page.run("return $('flag').getAttribute('aria-pressed')") == "true"
    page.press("ARROW_RIGHT")
    assert page.run("return $('flag').getAttribute('aria-pressed')") == "false"
    page.run("$('clear-flags').click(); $('detail').close()")


def test_flagged_ids_leave_a_corpus_by_filter_and_by_remove(corpus: Path, tmp_path: Path) -> None:
    ids = Corpus.open(corpus).ids()
    (tmp_path / "flagged.txt").write_text(f"{ids[2]}\n{ids[5]}\n")
    words = ["filter", str(corpus), "--without", str(tmp_path / "flagged.txt")]
    done = CliRunner().invoke(build_app(), [*words, "--out", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.output
    assert Corpus.open(tmp_path / "kept").ids() == [*ids[:2], *ids[3:5], *ids[6:]]
    reasons = [row["reason"] for row in Corpus.open(tmp_path / "kept").rejected()]
    assert reasons == ["its id was left out"] * 2


# ---- why, and sources ---------------------------------------------------------------------------


def test_the_gates_on_the_page_are_those_of_mining() -> None:
    limits = gate_limits()
    assert limits["standard"]["ghost"] == [0.0, 0.5] and limits["strict"]["ghost"] == [0.0, 0.35]
    assert limits["loose"]["blur"] == [3.0, None]  # no greatest value
    assert "unseen_fraction" not in limits["coarse"]  # any background is taken there
    for score in SCORES:
        assert (score.name in limits["standard"]) == (score.limits("standard") is not None)


def test_the_panel_says_which_scores_fail_which_gate(page: Browser, report: Path) -> None:
    load(page, report)
    page.run("open(listed[1])")
    rows = "return [...$('why').rows].map((row) => [...row.cells].map((cell) => cell.textContent))"
    found = page.run(rows)
    assert found[0] == ["ghost", "0.9", "0 to 0.5", "fails"]
    assert ["motion", "5", "0.03 to 40", "passes"] in found
    assert ["blur", "-", "at least 8", "not known"] in found
    assert page.run("return $('verdict').textContent") == "1 of 2 known scores fail"
    page.run("$('preset').value = 'loose'; $('preset').onchange()")
    assert page.run("return $('verdict').textContent") == "all 1 known scores pass"
    page.run("$('preset').value = 'standard'; $('detail').close()")


def test_a_source_has_its_own_address(page: Browser, report: Path) -> None:
    load(page, report, "#source=video-2.mp4")
    page.wait(f"return (() => {{ {CARDS} }})().join() === '2,6'")
    assert page.run("return $('filters-title').textContent") == "Filters (1 set)"
    load(page, report)
    page.run("open(listed[5]); $('of-source').click()")
    page.wait(f"return (() => {{ {CARDS} }})().join() === '1,5'")
    assert page.run("return location.hash") == "#source=video-1.mp4"
    page.run("$('filters').reset()")
    page.wait(f"return (() => {{ {CARDS} }})().length === 8")
    assert page.run("return location.hash") == "" and page.log("browser") == []


def test_a_served_page_asks_for_one_source(corpus: Path) -> None:
    browsed = Browsed(corpus, workers=1)
    assert [row["index"] for row in browsed.rows({"source": "video-1.mp4"})["rows"]] == [1, 5]
    more = browsed.rows({"source": "video-1.mp4", "offset": "1"})
    assert (more["total"], [row["index"] for row in more["rows"]]) == (2, [5])
    assert browsed.rows({})["total"] == 8
    browsed.close()


# ---- two of them --------------------------------------------------------------------------------


def test_a_pair_shows_the_layers_of_both(corpus: Path, other: Path, tmp_path: Path) -> None:
    source = open_source(corpus, against=other)
    assert isinstance(source, PairSource) and len(source) == 7
    assert source.note == "clips of the same ids; 1 only in A, 1 only in B"
    rows = list(source.rows())
    assert [row["index"] for row in rows] == list(range(7))
    place = next(row["index"] for row in rows if row["id"] == f"{1:016x}")
    assert rows[place]["scores"]["ghost (B)"] == 1.0
    assert rows[place]["scores"]["ghost"] == pytest.approx(0.9)
    panels = source.panels(place)
    shown = CorpusSource(corpus).clip(4)
    assert np.array_equal(panels["alpha of B foreground"], shown.alpha)
    preview = make_preview(source.clip(place), 32, more=panels)
    assert preview.panels[6:] == tuple(panels)
    frames = decode_color(preview.media)
    height, width = preview.panel
    at = preview.panels.index("B blended")
    y, x = at // 3 * preview.cell[0], at % 3 * preview.cell[1]
    found = frames[:, y : y + height, x : x + width].astype(float)
    assert np.abs(found - shown.blended).mean() < 6  # coded twice, with loss
    with pytest.raises(ValueError, match="no clip with the same id"):
        open_source(
            corpus, against=write_corpus(tmp_path / "d", [make_rows(1)[0] | {"id": "e" * 16}])
        )


def test_the_page_plays_both_together(page: Browser, corpus: Path, other: Path) -> None:
    out = corpus.parent / "pair.html"
    words = ["view", str(corpus), "--against", str(other), "--out", str(out)]
    assert CliRunner().invoke(build_app(), words).exit_code == 0
    load(page, out)
    page.wait("return [...players].every((p) => p.shot || p.problem)")
    assert page.run("return [...players].every((p) => !p.problem)")
    assert page.run("return $('name').textContent") == "A: c, B: other"
    labels = "return [...document.querySelector('.stage').children].map((s) => s.textContent)"
    assert page.run(labels)[1:] == ["blended", "B blended", "foreground", "B foreground"]
    page.press("3")
    assert page.run(labels)[1:] == ["alpha", "alpha of B foreground"]
    page.press("0")
    page.run("open(listed[0])")
    page.wait("return document.querySelectorAll('#panels figure').length === 11")
    assert page.log("browser") == []
    page.run("$('detail').close()")


# ---- elsewhere ----------------------------------------------------------------------------------


def test_a_corpus_in_a_bucket_is_viewed_by_ranges(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="needs the extra s3")
    from tests.support.s3 import s3_bucket

    with s3_bucket("care") as system:
        url = "s3://care/c"
        version = commit_of(Path(shutil.copytree(corpus, tmp_path / "c")), Store(url))
        assert system.exists("care/c/versions")
        media = sum(path.stat().st_size for path in corpus.glob("*.arrow"))
        read: list[int] = []
        whole = Store.read

        def counted(self: Store, *place: Any) -> bytes:
            data = whole(self, *place)
            read.append(len(data))
            return data

        monkeypatch.setattr(Store, "read", counted)
        browsed = Browsed(url, workers=1)
        assert browsed.rows({"kind": "mined"})["total"] == 3
        answer = read_preview(browsed.preview(4, 144))
        assert answer.frames == 5
        clip = Corpus.open(corpus).clip(4)
        height, width = answer.panel
        shown = decode_color(answer.media)[:, :height, :width].astype(float)
        assert np.abs(shown - clip.blended).mean() < 6
        browsed.close()
        written = write_report(url, tmp_path / "page.html", limit=2, workers=1)
        assert written == [tmp_path / "page.html"]
        assert 'id="media-1"' in written[0].read_text() and version == 1
        assert sum(read) > 0 and media > 0


def commit_of(corpus: Path, store: Store) -> int:
    """Moves a corpus to a store, as its version 1."""
    version = logged(corpus, "mine", Corpus.open(corpus).info)
    for path in sorted(corpus.rglob("*.arrow")):
        store.put_file(path.relative_to(corpus).as_posix(), path)
    commit(store, version)
    return version.number


def test_a_long_list_keeps_some_cards_and_finds_the_others_again(
    page: Browser, corpus: Path
) -> None:
    browsed = Browsed(corpus, workers=1)
    row = browsed._rows[0] | {"problem": "not asked for"}
    browsed._rows[:] = [row | {"index": i, "id": f"{i:016x}"} for i in range(400)]
    browsed._last = {}, browsed._rows
    in_order = "const all = [...$('grid').children].map((c) => c.clip.index);"
    end = "window.scrollTo(0, document.body.scrollHeight)"
    with make_server(browsed, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        page.open(f"http://127.0.0.1:{server.server_address[1]}/")
        page.run("most.cards = 48")
        page.wait(f"{end}; return listed.length >= 240", 60)
        count, first, above = page.run(
            "return [document.querySelectorAll('.card').length, first, above]"
        )
        assert count <= 48 + 4 * 24 and first >= 96 and above > 1000
        page.wait("window.scrollTo(0, 0); return first === 0", 60)
        assert page.run("return above") == 0
        assert page.run(f"{in_order} return all.every((n, i) => n === i) && all.length <= 96")
        known = page.run("return listed.length")
        page.wait(f"{end}; return listed.length > {known}", 60)
        assert page.run(f"{in_order} return all.every((n, i) => n === all[0] + i)")
        assert page.run(f"{in_order} return all[0] === first")
        server.shutdown()
    browsed.close()
