"""Subjects that are chosen by hand, and each of several, from the table to the corpus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.splits import assign
from layerflow.corpus.table import Corpus
from layerflow.corpus.validate import check_folder
from manifests.chosen import parse_box, parse_points
from manifests.mine import MineOptions
from pipelines.engine.jobs import make_recipe
from pipelines.engine.staging import InfrastructureError
from pipelines.engine.steps import Refused
from pipelines.inputs.listing import list_sources
from pipelines.inputs.prompts import read_prompt_table
from pipelines.matting import CHOSEN, SEVERAL, Earlier, Matte
from pipelines.matting.motion.backend import MotionMatting
from pipelines.mine import chosen, job
from pipelines.mine.job import run_mine
from pipelines.mine.plan import VideoSpan, plan_units
from pipelines.mine.survey import Candidate, Findings
from pipelines.mine.window import Before, Video, Window
from pipelines.retry import run_retry
from tests.support.matting_clips import mean_iou, two_movers
from tests.support.mined import options, write_video

SMALL = "0.7,0.58,0.91,0.94"  # the box around the small mover of the first frame


def asked(folder: Path, out: Path, **more: object) -> MineOptions:
    return options(folder, out, **{"size": "96x160", "matting": "motion", **more})


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_video(folder / "a.mp4", list(two_movers(16).frames), crf=8)
    return folder


class Red:
    """Mattes what is red: the upper thing, which is the large one, or the one that is chosen."""

    name, version, licence = "red", "1", "CC0-1.0"
    needs = frozenset({CHOSEN, SEVERAL})

    def __call__(self, frames, backdrop=None, chosen=None, several=False):  # type: ignore[no-untyped-def]
        red = frames[..., 0].astype(int) - frames[..., 1] > 60
        both = [red & half for half in (np.arange(96)[:, None] < 54, np.arange(96)[:, None] >= 54)]
        if chosen is not None:
            both = [one for one in both if (one[chosen.frame] & chosen.region).any()]
        made = [Matte(one.astype(np.float32), {"matte_confidence": 0.9}) for one in both]
        if not made:
            return Matte(np.zeros(frames.shape[:3], np.float32), {"matte_confidence": 0.0})
        return replace(made[0], others=tuple(made[1:]) if several else ())


@pytest.fixture
def red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.mine.window.matting_backend", lambda *asked: Red())


def ious(corpus: Corpus) -> list[tuple[float, float]]:
    """Of each clip the IoU with the large and with the small mover."""
    truth, found = two_movers(24), []
    for index, row in enumerate(corpus.rows(["origin"])):
        first = round(row["origin"]["start"] * 10)
        alpha = corpus.clip(index).alpha / np.float32(255)
        both = (truth.large, truth.small)
        found.append(tuple(mean_iou(alpha, t[first : first + 8]) for t in both))
    return found


# ---- what may be said ---------------------------------------------------------------------------


def test_boxes_and_points_are_shares_of_the_picture() -> None:
    assert parse_box(" 0.1, .2,0.5,1") == parse_box([0.1, 0.2, 0.5, 1]) == (0.1, 0.2, 0.5, 1.0)
    assert parse_points("0.3,0.4;0.8,0.2,0") == ((0.3, 0.4, True), (0.8, 0.2, False))
    assert parse_points([[0.3, 0.4, 1]]) == parse_points([[0.3, 0.4]]) == ((0.3, 0.4, True),)


@pytest.mark.parametrize("bad", [
    "1,2,3", "a,b,c,d", "0.5,0.1,0.2,0.9", "0.1,0.1,0.105,0.9", "10,20,100,200", "nan,0,1,1",
    "0,0,1,inf", "0,0,1,1,1", 7, None, {"x": 1}, [10**400, 0, 1, 1], "0," * 1000,
])  # fmt: skip
def test_bad_boxes_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"a box is|a box goes|shares of the picture"):
        parse_box(bad)


@pytest.mark.parametrize(
    "bad", ["", "1", "0.5,0.5,2", "2,2", [], [[0.1, 0.1]] * 65, [[0.1]], "0.1,;"]
)
def test_bad_points_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"points are|a point is|shares of the picture"):
        parse_points(bad)


def test_a_choice_says_where_and_not_with_each() -> None:
    said = {"inputs": ["a"], "out": "b", "size": "96x128"}
    for more, words in (
        ({"at": 1.0}, "by a box or by points"),
        ({"points": "0.5,0.5,0"}, "of which one is on it"),
        ({"box": SMALL, "subjects": "each"}, "is one"),
        ({"box": SMALL, "at": -1.0}, "greater than or equal to 0"),
    ):
        with pytest.raises(ValueError, match=words):
            MineOptions.model_validate({**said, **more})


def test_jobs_without_a_choice_keep_their_recipe_and_others_have_their_own() -> None:
    said = {"inputs": ["a"], "out": "b", "size": "96x128", "matting": "motion"}
    said["captions"] = {"model": "vlm"}  # type: ignore[assignment]

    def recipe(**more: object) -> str:
        content = MineOptions.model_validate({**said, **more}).model_dump(mode="json")
        again = MineOptions.model_validate(content).model_dump(mode="json")
        assert again == content  # as a replay reads it
        return make_recipe("mined", content, 6, {}).hash

    assert recipe() == "6437e494a0125d23"  # as before there were choices
    ways = (
        {},
        {"box": SMALL},
        {"points": "0.5,0.5"},
        {"box": SMALL, "at": 1},
        {"subjects": "each"},
    )
    assert len({recipe(**way) for way in ways}) == len(ways)


def test_a_table_chooses_row_by_row_and_a_bad_row_is_named(videos: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        f'video,subject_box,subject_points,subject_at\na.mp4,"{SMALL}",,\na.mp4,,"0.2,0.3",1.5\nb,,,\n'
    )
    found = read_prompt_table(table)
    said = asked(videos, tmp_path / "c", prompts=str(table))
    (unit,) = plan_units(list_sources([str(videos)]), said, found)
    assert found["b"] == {}
    first, second = unit.payload["choices"]
    assert first == {"box": [0.7, 0.58, 0.91, 0.94], "points": None, "at": None}
    assert second == {"box": None, "points": [[0.2, 0.3, True]], "at": 1.5}
    own = asked(videos, tmp_path / "c", points="0.5,0.5")
    (other,) = plan_units(list_sources([str(videos)]), own)
    (plain,) = plan_units(list_sources([str(videos)]), asked(videos, tmp_path / "c"))
    assert other.payload["choices"][0]["points"] == [[0.5, 0.5, True]]
    assert len({unit.key, other.key, plain.key}) == 3  # a changed box is done again
    for cells, words in (
        ('"0.9,0.1,0.2,0.4",,', r"t\.csv row 2: box: a box goes"),
        (',"0.1,0.1,0",', r"t\.csv row 2.*one is on it"),
        ('"0.1,0.1,0.4,0.4",,soon', r"t\.csv row 2: at: .*number"),
        (f'"{SMALL}",,', r"t\.csv row 2: .*twice for the same time"),
    ):
        table.write_text(
            f'video,subject_box,subject_points,subject_at\na.mp4,"{SMALL}",,\na.mp4,{cells}\n'
        )
        with pytest.raises(ValueError, match=words):
            read_prompt_table(table)
    listed = videos / "list.jsonl"
    listed.write_text(json.dumps({"video": "a.mp4", "subject_box": [0.1, 0.1, 3, 0.4]}) + "\n")
    (source,) = list_sources([str(listed)])
    listed.unlink()
    assert "list.jsonl row 1: where the subject is: box: places are shares" in str(source.problem)


@pytest.mark.parametrize("more", [{"box": SMALL}, {"subjects": "each"}])
def test_a_backend_that_cannot_take_it_says_so_before_the_job(
    more: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"'chroma'.*work"):
        run_mine(asked(videos, tmp_path / "c", matting="chroma", **more), workers=0)
    assert not (tmp_path / "c").exists()


# ---- where it is in a window --------------------------------------------------------------------


def window(times: list[float], *choices: dict, bars=None, joined=None) -> Window:  # type: ignore[no-untyped-def, type-arg]
    findings = Findings("0" * 64, [(0.0,), (4.0,)], [0.0, 4.0], [3.9, 9.0])
    span = VideoSpan("a", "", "a", choices=list(choices), joined=joined or {})
    said = MineOptions(inputs=["a"], out="c", size="100x100", fps=10)
    video = Video(said, "", span, findings, Path("a"), None)  # type: ignore[arg-type]
    video.__dict__["shape"] = (200, 400)
    return Window(video, Candidate(tuple(times), bars, 0 if times[0] < 4 else 1))


def test_a_box_is_where_it_was_drawn_whatever_is_cropped() -> None:
    choice = {"box": [0.25, 0.5, 0.5, 1.0]}
    plain = window([0.0, 0.1], choice)
    chosen.find_choice(plain)
    assert plain.chosen is not None and plain.chosen.region is not None
    rows, columns = np.nonzero(plain.chosen.region)
    # 400x200 at half its size, the middle 100 of 200 columns: 50..100 of 200 are 0..50 of 100
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50, 99, 0, 49)
    barred = window([0.0, 0.1], {"points": [[0.5, 0.5], [0.99, 0.5]]}, bars=(0.25, 0.75, 0.0, 1.0))
    chosen.find_choice(barred)
    assert barred.chosen is not None and barred.chosen.points == ((50.0, 50.0),)
    outside = window([0.0, 0.1], {"box": [0.0, 0.0, 0.2, 1.0]})
    with pytest.raises(Refused, match="outside of the clip's picture"):
        chosen.find_choice(outside)


def test_a_choice_holds_for_the_shot_of_its_time_and_from_that_on() -> None:
    early, late = {"points": [[0.5, 0.5]], "at": 1.0}, {"points": [[0.6, 0.5]], "at": 5.04}
    with pytest.raises(Refused, match=r"before 1\.00 s"):
        chosen.find_choice(window([0.0, 0.1], early, late))
    inside = window([0.9, 1.0, 1.1], early, late)
    chosen.find_choice(inside)
    assert inside.chosen is not None and inside.chosen.frame == 1
    second = window([5.0, 5.1], early, late)
    chosen.find_choice(second)
    assert second.chosen is not None and second.chosen.points == ((70.0, 50.0),)
    other = window([5.0, 5.1], early)
    chosen.find_choice(other)
    assert other.chosen is None  # nobody chose anything in that shot
    gone = window([0.0, 0.1], {**early, "at": 300.0})
    assert chosen.unused_choices(gone.video) == [
        "the subject was chosen at 300.00 s, which no window's shot shows"
    ]
    assert chosen.unused_choices(second.video) == []


def test_a_subject_is_followed_from_the_last_sure_matte_and_not_too_far() -> None:
    clip = two_movers(6)
    later = window([3.0, 3.1], {"points": [[0.5, 0.5]]})
    last = Earlier(clip.frames[0], (clip.small[0] * 255).astype(np.uint8))
    later.frames = clip.frames[1:]
    later.video.options = later.video.options.model_copy(update={"size": (96, 160)})
    later.video.sure = Before(0, 2.9, last, 0.9)
    chosen.find_choice(later)
    assert later.chosen is not None and later.chosen.region is not None
    moved, now = later.chosen.region, clip.small[1] > 0
    assert (moved & now).sum() > 0.95 * now.sum() and moved.sum() < 1.5 * now.sum()
    lost = window([3.9, 4.0], {"points": [[0.5, 0.5]]})
    with pytest.raises(Refused, match=r"last seen at 0\.00 s, too long before"):
        chosen.find_choice(lost)


# ---- whole jobs ---------------------------------------------------------------------------------


def test_a_box_steers_a_job_and_an_empty_place_is_a_rejected_row(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MotionMatting(96 * 160, passes=2, segments=150)
    monkeypatch.setattr("pipelines.mine.window.matting_backend", lambda *asked: backend)
    summary = run_mine(asked(videos, tmp_path / "c", box=SMALL), workers=0)
    assert summary.kept == 2
    corpus = Corpus.open(tmp_path / "c")
    assert all(small > 0.75 > 0.1 > large for large, small in ious(corpus)), ious(corpus)
    ids = [row["id"] for row in corpus.rows(["id"])]
    table = tmp_path / "t.csv"
    table.write_text('video,subject_box\na.mp4,"0.4,0.3,0.6,0.6"\n')
    summary = run_mine(asked(videos, tmp_path / "d", prompts=str(table)), workers=0)
    assert summary.kept == 0 and len(set(ids)) == 2
    reasons = [(row["stage"], row["reason"]) for row in Corpus.open(tmp_path / "d").rejected()]
    assert reasons[0] == ("subject", "nothing was found where the subject was chosen by hand")
    assert {stage for stage, _ in reasons} == {"subject"}


def test_each_subject_gives_a_clip_and_a_resumed_job_is_the_same(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, red: None
) -> None:
    said = {"subjects": "each"}
    summary = run_mine(asked(videos, tmp_path / "c", **said), workers=0)
    assert summary.kept == 4 and not check_folder(tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    rows = list(corpus.rows(["id", "kind", "origin", "quality", "subject"]))
    assert len({row["id"] for row in rows}) == 4
    sizes = [large > small for large, small in ious(corpus)]
    assert sizes == [True, False, True, False] and all(max(pair) > 0.75 for pair in ious(corpus))
    subjects = [row["subject"] for row in rows]
    assert subjects[:2] == subjects[2:] and len(set(subjects)) == 2
    assert [row["quality"]["other_subjects"] for row in rows] == [1.0] * 4
    assert [row["quality"]["seam"] is None for row in rows] == [True, True, False, False]
    assert min(row["quality"]["seam"] for row in rows[2:]) > 0.8
    foreign = [{**row, "id": f"x{row['id']}", "subject": None} for row in rows[:1]]
    foreign[0]["origin"] = {**rows[0]["origin"], "uri": "b.mp4", "sha256": "1" * 64}
    names = assign([*rows, *foreign], {"train": 0.8, "test": 0.2}).names
    assert len(set(names[:4])) == 1 and names[4] != names[0]

    real = job._rows

    def stops(*given: object) -> None:
        raise InfrastructureError("the disk is full")

    monkeypatch.setattr(job, "_rows", stops)
    with pytest.raises(OSError, match="disk is full"):
        run_mine(asked(videos, tmp_path / "d", **said), workers=0)
    monkeypatch.setattr(job, "_rows", real)
    run_mine(asked(videos, tmp_path / "d", **said), workers=0)
    again = Corpus.open(tmp_path / "d")
    assert list(again.rows()) == list(corpus.rows())


def test_a_subject_that_was_rejected_beside_another_one_is_replayed(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, red: None
) -> None:
    def fails_for_the_second(window: Window) -> None:
        if window.number:
            raise ValueError("no memory left")

    said = asked(videos, tmp_path / "c", subjects="each", frames=16)
    with monkeypatch.context() as patch:
        patch.setattr(job, "STEPS", (*job.STEPS, fails_for_the_second))
        assert run_mine(said, workers=0).kept == 1
    retried = run_retry(tmp_path / "c", tmp_path / "again", workers=0, quiet=True)
    assert (retried.replayed, retried.gained) == (1, 1)
    again = Corpus.open(tmp_path / "again")
    assert len({row["subject"] for row in again.rows(["subject"])}) == 2
    assert again.rejected() == []


def test_the_page_shows_the_choice_and_each_subject(
    videos: Path, tmp_path: Path, red: None
) -> None:
    out = tmp_path / "p.html"
    said = ["--size", "96x160", "--frames", "16", "--fps", "10", "--matting", "motion"]
    said += ["--gate", "off", "--out", str(out)]
    for more, words in (
        (["--box", SMALL], ["chosen by hand", "1 of 1 taken"]),
        (["--subjects", "each"], ["subject 2 of 2", "2 of 2 taken", "other_subjects"]),
    ):
        done = CliRunner().invoke(build_app(), ["mine", "--explain", str(videos), *said, *more])
        assert done.exit_code == 0, done.output
        assert all(word in out.read_text() for word in words)
