"""The mine job on made videos: layers, scores, rejected rows, the same rows for any workers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from layerflow.corpus.table import Corpus
from pipelines.mine.job import run_mine
from tests.support.mined import green_screen, options, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        np.save(folder / f"v{seed}.npy", green_screen(folder / f"v{seed}.mp4", seed))
    (folder / "v1.json").write_text('{"foreground": "a ball", "blended": "a ball rolls"}')
    return folder


def test_mined_layers_are_the_true_ones(videos: Path, tmp_path: Path) -> None:
    summary = run_mine(options(videos, tmp_path / "c"), workers=0, quiet=True)
    assert (summary.kept, summary.rejected) == (6, 0)
    corpus = Corpus.open(tmp_path / "c")
    for index, row in enumerate(corpus.rows()):
        clip = corpus.clip(index)
        truth = np.load(videos / Path(row["origin"]["uri"]).with_suffix(".npy"))
        first = round(row["origin"]["start"] * 10)
        inside = truth[first : first + 8] > 127
        found = clip.alpha > 127
        assert (inside & found).sum() / (inside | found).sum() > 0.9
        clean = clip.background[~inside].astype(int) - (20, 200, 40)
        assert np.abs(clean).mean() < 6
        assert np.abs(clip.background[inside].astype(int) - (20, 200, 40)).mean() < 12
        assert row["quality"]["recomposition_error"] < 3
        assert row["origin"]["uri"].startswith("v") and len(row["origin"]["sha256"]) == 64
    by_video = {row["origin"]["uri"]: row["blended_prompt"] for row in corpus.rows()}
    assert by_video["v1.mp4"] == "a ball rolls"


def test_every_bad_file_is_a_rejected_row_and_the_job_goes_on(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = (videos / "v0.mp4").read_bytes()
    (folder / "a-good.mp4").write_bytes(good)
    (folder / "b-empty.mp4").touch()
    (folder / "c-text.mp4").write_text("not a video")
    (folder / "d-cut.mp4").write_bytes(good[: len(good) // 2])
    green_screen(folder / "e-short.mp4", 3, frames=1)
    (folder / "f-good.mp4").write_bytes((videos / "v1.mp4").read_bytes())
    (folder / "f-good.json").write_text("{broken")
    (folder / "g-twin.mp4").write_bytes(good)
    summary = run_mine(options(folder, tmp_path / "c"), workers=0, quiet=True)
    corpus = Corpus.open(tmp_path / "c")
    assert {row["origin"]["uri"] for row in corpus.rows(["origin"])} == {"a-good.mp4"}
    rejected = {row["uri"]: (row["stage"], row["reason"]) for row in corpus.rejected()}
    assert set(rejected) == {
        "b-empty.mp4", "c-text.mp4", "d-cut.mp4", "e-short.mp4", "f-good.mp4", "g-twin.mp4",
    }  # fmt: skip
    assert rejected["b-empty.mp4"] == ("read", "the file is empty (zero bytes)")
    assert rejected["e-short.mp4"][0] == "windows"
    assert "not valid JSON" in rejected["f-good.mp4"][1]
    assert rejected["g-twin.mp4"] == ("duplicates", "the same content as a-good.mp4")
    assert summary.rejected == len(corpus.rejected())


def test_cheap_filters_come_before_matting(tmp_path: Path) -> None:
    still = tmp_path / "still"
    still.mkdir()
    write_video(still / "s.mp4", [np.full((96, 128, 3), (20, 200, 40), np.uint8)] * 16)
    summary = run_mine(options(still, tmp_path / "c", gate="standard"), workers=0, quiet=True)
    assert summary.kept == 0
    rows = Corpus.open(tmp_path / "c").rejected()
    assert rows and all(row["stage"] == "filters" for row in rows)
    assert rows[0]["quality"]["motion"] is not None and rows[0]["quality"]["area_mean"] is None


def test_the_gate_moves_clips_to_rejected_with_their_scores(videos: Path, tmp_path: Path) -> None:
    limits = {"thresholds": {"area_mean": [0.5, 1.0]}}
    summary = run_mine(options(videos, tmp_path / "c", **limits), workers=0, quiet=True)
    assert summary.kept == 0 and summary.reasons == {"gate: area_mean below its bound": 6}
    rows = Corpus.open(tmp_path / "c").rejected()
    assert all(row["stage"] == "gate" and row["quality"]["area_mean"] < 0.5 for row in rows)
    with pytest.raises(ValueError, match="unknown score 'beauty'"):
        run_mine(options(videos, tmp_path / "d", thresholds={"beauty": [0, 1]}), workers=0)


def test_of_near_duplicates_the_first_stays(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, seed in (("b.mp4", 5), ("c.mp4", 6)):
        green_screen(folder / name, seed, frames=10)
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 255, (12, 40, 3), np.uint8), (426, 128))
    pan = [np.ascontiguousarray(texture[16:112, 9 * t : 9 * t + 128]) for t in range(10)]
    write_video(folder / "a.mp4", pan)
    softer = [cv2.resize(np.clip(p * 0.95 + 12, 0, 255).astype(np.uint8), (192, 144)) for p in pan]
    write_video(folder / "twin.mp4", softer, crf=30)
    write_video(folder / "reverse.mp4", pan[::-1])
    for gate in ("off", "loose"):
        out = tmp_path / gate
        loose = {"thresholds": {"matte_confidence": [0, 1], "area_min": [0, 1]}, "gate": gate}
        run_mine(options(folder, out, **loose), workers=0, quiet=True)
        corpus = Corpus.open(out)
        rows = {r["origin"]["uri"]: r["quality"] for r in corpus.rows(["origin", "quality"])}
        turned_down = {r["uri"]: r for r in corpus.rejected()}
        if gate == "off":
            assert len(rows) == 5 and rows["twin.mp4"]["duplicate_distance"] < 0.5
            assert rows["a.mp4"]["duplicate_distance"] is None
        else:
            assert turned_down["twin.mp4"]["stage"] == "duplicates"
            assert turned_down["twin.mp4"]["reason"] == "nearly the same as a.mp4 at 0.00 s"
            assert {"b.mp4", "c.mp4", "reverse.mp4"}.isdisjoint(
                uri for uri, r in turned_down.items() if r["stage"] == "duplicates"
            )


def test_ray_workers_give_the_same_files(videos: Path, tmp_path: Path) -> None:
    from pipelines.engine.cluster import stop_ray

    run_mine(options(videos, tmp_path / "here"), workers=0, quiet=True)
    try:
        run_mine(options(videos, tmp_path / "ray"), workers=2, quiet=True)
    finally:
        stop_ray()
    names = sorted(p.name for p in (tmp_path / "here").glob("*.arrow"))
    assert names
    for name in [*names, "state.json", "corpus.json"]:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


def test_a_wrong_request_fails_before_any_work(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown matting backend"):
        run_mine(options(videos, tmp_path / "c", matting="magic"), workers=0)
    with pytest.raises(ValueError, match="has no weights"):
        run_mine(options(videos, tmp_path / "c", weights="x.onnx"), workers=0)
    assert not (tmp_path / "c").exists()
