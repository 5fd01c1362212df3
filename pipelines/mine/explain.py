"""``layerflow mine --explain``: one page that shows why each window of a video is taken or not.

Every window goes through the steps of the job, and on where the job would stop, so that the page
has its layers and scores in any case. The page makes no request and runs no script.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib import resources
from itertools import islice, starmap
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.clip import U8
from layerflow.corpus.scores import meaning
from layerflow.files import write_bytes
from layerflow.locations import clean_uri
from layerflow.media.cells import MediaError
from layerflow.media.decode import shared_decoder
from layerflow.media.video import Limits
from layerflow.outputs import local_output
from manifests.mine import MineOptions
from pipelines.engine.steps import Refused, Steps
from pipelines.gates import Gate, judge, looser, misses, resolve_gate
from pipelines.inputs.listing import list_sources, local_copy
from pipelines.inputs.prompts import read_prompt_table
from pipelines.matting import Chosen
from pipelines.matting.auto.sources import Source
from pipelines.matting.motion.backend import Pass
from pipelines.mine.chosen import STEP, check_backend, unused_choices
from pipelines.mine.job import STEPS, after_matting, check_networks
from pipelines.mine.plan import VideoSpan, plan_units
from pipelines.mine.record import write_prompts
from pipelines.mine.survey import Findings, plan_survey, survey_unit
from pipelines.mine.window import Video, Window, with_networks

MAX_WINDOWS = 60
_HEIGHT = 144  # of a picture on the page, in pixels
_QUALITY = 80  # of its JPEG
_INK = (255, 64, 160)  # of an outline
_HAND, _AWAY = (255, 220, 0), (0, 200, 255)  # of what was chosen by hand, and what was not
_UNTIL = STEPS.index(write_prompts)
_LAYERS, _LAYERS_AFTER = STEPS[:_UNTIL], after_matting()[: _UNTIL - len(STEPS)]


@dataclass
class Trial:
    """What the page says of one window. refused: step and reason that decided, None if taken;
    broken: why nothing more is known; pictures: name and uint8 ``[h, w, 3]``."""

    title: str
    refused: tuple[str, str] | None = None
    broken: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    pictures: list[tuple[str, U8]] = field(default_factory=list)


def write_explanation(options: MineOptions) -> Path:
    """Write the page ``options.out`` on the first 60 windows of the inputs; returns its path.

    Nothing else is written. Raises ValueError as ``run_mine`` does for what cannot work.
    """
    out = local_output(options.out)
    options = with_networks(options)
    check_networks(options, options.device)
    gate = resolve_gate(options.gate, options.thresholds)
    found = list(islice(_trials(options), MAX_WINDOWS + 1))
    write_bytes(out, _page(options, gate, found).encode())
    return out


def _trials(options: MineOptions) -> Iterator[Trial]:
    for found in every_window(options):
        if isinstance(found, Window):
            span = f"{found.place.start:.2f} to {found.place.end:.2f} s"
            title = f"{clean_uri(found.video.span.uri)}, {span}"
            yield try_window(found, title)
            for sibling in found.siblings:
                told = f"{title}, subject {sibling.number + 1} of {len(found.siblings) + 1}"
                yield try_window(sibling, told, _LAYERS_AFTER)
        else:
            uri, step, reason = found
            yield Trial(clean_uri(uri), (step, reason))


def every_window(options: MineOptions) -> Iterator[Window | tuple[str, str, str]]:
    """The windows of the inputs as the job has them, before their steps; of what gives none the
    input, the step and the reason."""
    table = read_prompt_table(Path(options.prompts)) if options.prompts else None
    units = plan_units(list_sources(options.inputs), options, table)
    check_backend(options, [unit.payload for unit in units])
    looks = [(unit, survey_unit(unit.payload, options=options)) for unit in units]
    added = plan_survey(looks)
    for unit, look in looks:
        span = replace(VideoSpan(**unit.payload), **added.get(unit.key, {}))
        findings = Findings.of(look)
        for step, reason in findings.problems:
            yield span.uri, step, reason
        if not findings.windows:
            continue
        with local_copy(span.location, Limits().max_bytes) as path:
            video = Video(options, "", span, findings, path, shared_decoder(options.deadline))
            for reason in unused_choices(video):
                yield span.uri, STEP, reason
            for index, place in enumerate(findings.windows):
                yield Window(video, place, span.duplicates.get(str(index)))


def try_window(window: Window, title: str, steps: Steps[Window] = _LAYERS) -> Trial:
    """The window through the job's steps, and on past a refusal."""
    video = window.video
    trial, before = Trial(title), (video.ended, video.sure)
    seen: list[Any] = []
    if hasattr(video.backend, "observe"):
        video.backend.observe = seen.append
    for step in steps:
        try:
            step(window)
        except Refused as refused:
            trial.refused = trial.refused or (refused.step, str(refused))
        except (MediaError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            trial.broken = str(error)
            trial.refused = trial.refused or ("layers", trial.broken)
            break
    if trial.refused and trial.refused[0] in EARLY:  # the job has no matte of it then
        video.ended, video.sure = before
    trial.scores = window.scores
    trial.pictures = list(_pictures(window, _sources(seen)))
    return trial


def _sources(seen: Sequence[Any]) -> Sequence[Source]:
    """The votes that a backend last told its observer; ``motion`` has one."""
    if seen and isinstance(seen[-1], Pass):
        return [Source("motion", seen[-1].subject.astype(np.float32), 1.0, 1.0)]
    return seen[-1] if seen else ()


def _pictures(window: Window, sources: Sequence[Source]) -> Iterator[tuple[str, U8]]:
    """Of the middle frame: itself with the matte's outline, what each source says, the layers."""
    if not hasattr(window, "frames"):
        return
    middle = len(window.frames) // 2
    frame = window.frames[middle]
    if not hasattr(window, "alpha"):
        yield "frame", _small(frame)
        return
    if window.chosen is not None:
        yield "chosen by hand", _marked(window.frames[window.chosen.frame], window.chosen)
    alpha = window.alpha[middle]
    yield "frame and outline", _outlined(_small(frame), alpha)
    for source in sources:
        seen = np.rint(source.field[middle] * 255).astype(np.uint8)
        tinted = cv2.applyColorMap(seen, cv2.COLORMAP_VIRIDIS)[..., ::-1]
        yield f"{source.name} says, trust {source.trust:.2f}", _small(np.ascontiguousarray(tinted))
    yield "matte", _small(np.repeat(alpha[..., None], 3, -1))
    if hasattr(window, "plate"):
        yield "clean plate", _small(window.plate.background[middle])
        never = ~window.plate.seen[middle] & window.plate.hole[middle]
        if never.any():
            invented = np.where(never[..., None], np.array(_INK, np.uint8), frame)
            yield "shown by no frame", _small(invented)


def _small(picture: U8) -> U8:
    width = max(1, round(picture.shape[1] * _HEIGHT / picture.shape[0]))
    return cv2.resize(picture, (width, _HEIGHT), interpolation=cv2.INTER_AREA)


def _marked(frame: U8, chosen: Chosen) -> U8:
    """A frame with the box (or what became of it) and the points that were chosen by hand."""
    picture = _small(frame)
    if chosen.region is not None:
        picture = _outlined(picture, chosen.region.astype(np.uint8) * 255, _HAND)
    scale = picture.shape[0] / frame.shape[0]
    for ink, places in ((_HAND, chosen.points), (_AWAY, chosen.away)):
        for x, y in places:
            cv2.circle(picture, (round(x * scale), round(y * scale)), 3, ink, -1)
    return picture


def _outlined(picture: U8, alpha: U8, ink: tuple[int, int, int] = _INK) -> U8:
    inside = cv2.resize(alpha, picture.shape[1::-1], interpolation=cv2.INTER_AREA) > 127
    edges, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture.copy(), edges, -1, ink, 1)


# ---- the page ------------------------------------------------------------------------------------


def _page(options: MineOptions, gate: Gate, found: Sequence[Trial]) -> str:
    trials = found[:MAX_WINDOWS]
    parts = {
        "title": escape(f"{', '.join(map(clean_uri, options.inputs))}: why"),
        "facts": escape(
            f"gate {options.gate}, matting {options.matting.partition('@')[0]}, "
            f"{options.frames} frames at {options.fps:g} a second"
        ),
        "summary": "".join(f"<p>{escape(line)}</p>" for line in summary(options, gate, found)),
        "windows": "".join(_section(trial, options.gate, gate) for trial in trials),
    }
    html = (resources.files("pipelines.mine") / "assets" / "explain.html").read_text("utf-8")
    for name, text in parts.items():
        html = html.replace(f"<!--{name}-->", text)
    return html


def summary(options: MineOptions, gate: Gate, found: Sequence[Trial]) -> list[str]:
    """How many windows were taken, what decided of the others, what a looser gate would take."""
    trials = found[:MAX_WINDOWS]
    taken = [trial for trial in trials if trial.refused is None]
    lines = [f"{len(taken)} of {len(trials)} taken by gate {options.gate}."]
    if len(found) > len(trials):
        lines[0] = f"The first {MAX_WINDOWS} windows: {lines[0]}"
    judged = [trial for trial in trials if trial.refused and trial.refused[0] in JUDGED]
    for one in misses([trial.scores for trial in judged], gate):
        decided = f"{one.clips} by {one.score}: {one.side} {one.bound:g}"
        lines.append(f"{decided}, the nearest has {one.nearest:.3g}.")
    steps = Counter(trial.refused[0] for trial in trials if trial.refused and trial not in judged)
    lines += [f"{count} refused as {step}." for step, count in steps.items()]
    for preset in looser(options.gate)[:1]:
        more = sum(judge(trial.scores, preset) is None for trial in judged)
        lines.append(f"--gate {preset} would take {more} more.")
    if not taken and judged and not looser(options.gate):
        lines.append("No gate is looser but off, which keeps every window.")
    return lines


EARLY = ("duplicates", "filters", STEP)
JUDGED = ("filters", "gate")


def _section(trial: Trial, preset: str, gate: Gate) -> str:
    if trial.refused is None:
        verdict, kind = "taken", "taken"
    else:
        verdict, kind = f"refused as {trial.refused[0]}: {trial.refused[1]}", "refused"
    next_one = ""
    if trial.refused and trial.refused[0] in JUDGED:
        for looser_one in looser(preset)[:1]:
            why = judge(trial.scores, looser_one)
            next_one = f"--gate {looser_one} would " + ("take it" if not why else f"not: {why}")
    figures = "".join(starmap(_figure, trial.pictures))
    return (
        f'<section class="{kind}"><h2>{escape(trial.title)}</h2>'
        f'<p class="verdict">{escape(verdict)}</p><p>{escape(next_one)}</p>'
        f"<div>{figures}</div>{_scores(trial, gate)}</section>"
    )


def _figure(name: str, picture: U8) -> str:
    image = f'<img src="{_jpeg(picture)}" alt="">'
    return f"<figure>{image}<figcaption>{escape(name)}</figcaption></figure>"


def _scores(trial: Trial, gate: Gate) -> str:
    """Scores that the gate judges, those that fail first, then the others."""
    rows: list[tuple[bool, str]] = []
    names = [*(n for n in gate if n in trial.scores), *(n for n in trial.scores if n not in gate)]
    for name in names:
        value = trial.scores[name]
        low, high = gate.get(name, (-np.inf, np.inf))
        fails = not low <= value <= high
        wanted = f"{low:g} to {high:g}" if name in gate else ""
        cells = "".join(
            f"<td>{escape(text)}</td>" for text in (name, f"{value:.4g}", wanted, meaning(name))
        )
        rows.append((fails, f'<tr class="{"fails" if fails else ""}">{cells}</tr>'))
    failing = "".join(row for fails, row in rows if fails)
    passing = "".join(row for fails, row in rows if not fails)
    head = "<tr><th>score</th><th>value</th><th>wanted</th><th>says</th></tr>"
    shown = f"<table>{head}{failing}</table>" if failing else ""
    if not passing:
        return shown
    folded = f"<summary>scores that pass</summary><table>{head}{passing}</table>"
    return f"{shown}<details>{folded}</details>"


def _jpeg(picture: U8) -> str:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
