"""The first pass of mining: a survey of every input before anything is matted.

Each time span is decoded once at thumbnail size: shots, windows, what is damaged, and a signature
of every window. Then near-duplicates are found across the whole corpus; the first in input order
stays. And shots that go on in the next span are joined, so that each has one subject.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.clip import U8
from layerflow.corpus.table import file_sha256
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder, shared_decoder
from layerflow.media.video import F64, Box, Limits
from manifests.mine import MineOptions
from pipelines.engine.jobs import Unit
from pipelines.inputs.listing import local_copy
from pipelines.mine.backdrop import backdrop_times, find_backdrop, presence
from pipelines.mine.duplicates import find_duplicates, signature
from pipelines.mine.frames import find_bars, trim_fades
from pipelines.mine.held import HELD, look_at_held
from pipelines.mine.plan import VideoSpan, time_spans
from pipelines.mine.shots import ClipSpan, Comes, cut_windows, find_shots, why_no_window

_LOOKS, _MOST_LOOKS = 8, 600  # at who is there: in the time of a window, in a shot
_SOMEBODY = 0.01  # share of the picture
_MUCH = 0.5  # of the most that a window shows of somebody; with less he comes or goes
_CROSSING = 0.02  # of the border; who crosses it covers so much more in some frames than in others
_EDGE = (16, 9)  # pixels of a picture by which two spans of one shot are joined
_ALIKE = 10.0  # levels that two neighbouring frames of one shot differ at most, on average


@dataclass(frozen=True)
class Candidate(ClipSpan):
    """A window that may become a clip. shot: an index of ``Findings.shots``; signature: hex digits
    of ``duplicates.signature``."""

    shot: int = 0
    signature: str = ""


@dataclass
class Findings:
    """What one unit holds. As JSON it is the unit's findings of the first pass.

    shots: for each with a window the times (seconds) of the frames by which its backdrop is found;
    starts, ends: of their first and last frames; edges: of each span, ``_edge``; problems: step and
    reason of a rejected row.
    """

    sha256: str = ""
    shots: list[tuple[float, ...]] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    edges: list[dict[str, Any]] = field(default_factory=list)
    windows: list[Candidate] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, findings: dict[str, Any]) -> Findings:
        """From the JSON of ``dataclasses.asdict``."""
        windows = [
            Candidate(tuple(w["times"]), w["box"] and tuple(w["box"]), w["shot"], w["signature"])
            for w in findings["windows"]
        ]
        return cls(**{**findings, "windows": windows})

    def subject(
        self, shot: int, start: float | None = None, name: tuple[float, int] | None = None
    ) -> str:
        """The id of a shot's subject, 16 hex digits of the source and the shot's start.

        start: when the shot begins, if that is in an earlier span. name: of several subjects of a
        shot which one, by the time at which it was first seen and its number there.
        """
        start = self.starts[shot] if start is None else start
        text = json.dumps([self.sha256, round(start, 3), *(name or ())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def survey_unit(payload: dict[str, Any], *, options: MineOptions) -> dict[str, Any]:
    """The ``Findings`` of one ``VideoSpan``, as plain values, or what ``held`` finds for its units.
    Never raises for a bad input."""
    if HELD in payload:
        return look_at_held(payload, options.size)
    span, findings = VideoSpan(**payload), Findings()
    if span.problem:
        findings.problems.append(("read", span.problem))
        return asdict(findings)
    decoder = shared_decoder(options.deadline)
    try:
        with local_copy(span.location, Limits().max_bytes) as path:
            findings.sha256 = file_sha256(path)
            spans = [(span.start, span.end)]
            if span.remote:
                spans = time_spans(decoder.probe(path).seconds, options.span)
            for start, end in spans:
                _survey_span(decoder, path, (start, end), options, findings)
    except (ValueError, OSError) as error:  # the file itself: fetching, probing, hashing
        findings.problems.append(("read", str(error)))
    return asdict(findings)


def _survey_span(
    decoder: Decoder,
    path: Path,
    span: tuple[float, float],
    options: MineOptions,
    findings: Findings,
) -> None:
    damage: list[str] = []
    splices: list[float] = []
    findings.edges.append({"opening": None, "closing": None})
    try:
        times, thumbs = decoder.scan(path, *span, damage=damage, splices=splices)
    except MediaError as error:
        findings.problems.append(("decode", str(error)))
        return
    if damage:  # what can be saved is used; what cannot is on record
        more = f" (and {len(damage) - 1} more like it)" if len(damage) > 1 else ""
        findings.problems.append(("decode", f"damaged: {damage[0]}{more}"))
    if not len(times):  # the picture stands still for longer than the span
        return
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else options.fps
    cuts = times.searchsorted(splices)
    shots = [trim_fades(thumbs, shot) for shot in find_shots(thumbs, rate, cuts.tolist())]
    before, opening, closing = len(findings.windows), None, None
    for shot in shots:
        bars = find_bars(thumbs[shot[0] : shot[1]])
        comes = _comes(times, thumbs, shot, options)
        places = cut_windows(times, shot, options.frames, options.fps, bars, comes)
        for place in places:
            picture = _inside(thumbs[times.searchsorted(place.times)], place.box)
            stored = covered(picture, *options.size)  # what a clip of it would show
            found = Candidate(place.times, place.box, len(findings.shots), signature(stored).hex())
            findings.windows.append(found)
        if places:
            opening = len(findings.shots) if shot[0] == 0 else opening
            closing = len(findings.shots) if shot[1] == len(times) else closing
            findings.shots.append(backdrop_times(times[shot[0] : shot[1]]))
            findings.starts.append(float(times[shot[0]]))
            findings.ends.append(float(times[shot[1] - 1]))
    findings.edges[-1] = _edge(thumbs, opening, closing)
    if len(findings.windows) == before:
        reason = why_no_window(times, shots, options.frames, options.fps)
        findings.problems.append(("windows", reason))


def _comes(times: F64, thumbs: U8, shot: tuple[int, int], options: MineOptions) -> Comes | None:
    """Whether somebody comes or goes between two times, by what stands before the backdrop.

    None where windows cannot slide or the thumbnails of the shot do not show one view.
    """
    length = options.frames / options.fps
    own = times[shot[0] : shot[1]]
    looks = backdrop_times(own)
    if not looks or own[-1] - own[0] < length:
        return None
    backdrop = find_backdrop(thumbs[times.searchsorted(looks)])
    if backdrop is None:
        return None
    step = max(length / _LOOKS, (own[-1] - own[0]) / _MOST_LOOKS)
    at = np.unique(
        own.searchsorted(np.linspace(own[0], own[-1], int((own[-1] - own[0]) / step) + 2))
    )
    there, crossing = presence(backdrop, thumbs[shot[0] + at])

    def comes(start: float, end: float) -> bool:
        between = np.linspace(start, end, _LOOKS + 1)
        share, border = (np.interp(between, own[at], values) for values in (there, crossing))
        moves = np.ptp(border) > _CROSSING or share.min() < _MUCH * share.max()
        return bool(moves and share.max() > _SOMEBODY)

    return comes


def _edge(thumbs: U8, opening: int | None, closing: int | None) -> dict[str, Any]:
    """First and last picture of a span (hex of uint8 ``[9, 16, 3]``), and which of
    ``Findings.shots`` hold them."""
    tiny = [cv2.resize(t, _EDGE, interpolation=cv2.INTER_AREA) for t in (thumbs[0], thumbs[-1])]
    first, last = (picture.tobytes().hex() for picture in tiny)
    return {"first": first, "last": last, "opening": opening, "closing": closing}


def _inside(thumbs: U8, box: Box | None) -> U8:
    """The part of thumbnails ``[N, h, w, 3]`` that lies inside a box."""
    if box is None:
        return thumbs
    height, width = thumbs.shape[1:3]
    top, bottom, left, right = box
    rows = slice(round(top * height), round(bottom * height))
    return thumbs[:, rows, round(left * width) : round(right * width)]


def covered(pictures: U8, height: int, width: int) -> U8:
    """The middle of pictures ``[N, h, w, 3]`` that has the shape of height x width."""
    own_height, own_width = pictures.shape[1:3]
    scale = min(own_height / height, own_width / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (own_height - rows) // 2, (own_width - columns) // 2
    return pictures[:, top : top + rows, left : left + columns]


def windows_of(findings: Mapping[str, Any]) -> int:
    """How many windows a look found: what mining them costs."""
    return len(findings["windows"])


def plan_survey(surveys: Iterable[tuple[Unit, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What the findings of all units, in their order, add to the payloads of some, by key:
    ``VideoSpan.duplicates`` and ``VideoSpan.joined``."""
    joined: dict[str, dict[str, Any]] = {}
    found = plan_duplicates(_joining(surveys, joined))
    return {key: found.get(key, {}) | joined.get(key, {}) for key in {**found, **joined}}


def _joining(
    surveys: Iterable[tuple[Unit, dict[str, Any]]], joined: dict[str, dict[str, Any]]
) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """The same surveys; adds the shots that began in an earlier span: their start, by index."""
    last: dict[str, Any] | None = None
    began, uri, ended = 0.0, "", -1.0  # of the shot at the end of the last span
    for unit, findings in surveys:
        if HELD in unit.payload:
            yield unit, findings
            continue
        follows = (unit.payload["uri"], unit.payload["start"]) == (uri, ended)
        last = last if follows else None
        own: dict[str, float] = {}
        for edge in findings["edges"]:
            opening, closing = edge["opening"], edge["closing"]
            goes_on = last is not None and opening is not None and last["closing"] is not None
            if goes_on and _alike(last["last"], edge["first"]):  # type: ignore[index]
                own[str(opening)] = began
            if closing is not None:
                began = own.get(str(closing), findings["starts"][closing])
            last = edge
        if own:
            joined[unit.key] = {"joined": own}
        uri, ended = unit.payload["uri"], unit.payload["end"]
        yield unit, findings


def _alike(one: str, other: str) -> bool:
    a, b = (np.frombuffer(bytes.fromhex(text), np.uint8).astype(float) for text in (one, other))
    return bool(np.abs(a - b).mean() <= _ALIKE)


def plan_duplicates(surveys: Iterable[tuple[Unit, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """For each unit with windows that resemble an earlier input's, or a clip that is held already:
    ``VideoSpan.duplicates``.

    Memory: some 80 bytes a window and 30 a unit; a file in ``TMPDIR`` takes 480 a window.
    """
    units: list[Unit] = []
    firsts, groups, starts = array("q"), array("q"), array("d")
    inputs: dict[str, int] = {}
    with tempfile.TemporaryFile(prefix="layerflow-") as file:
        for unit, findings in surveys:
            units.append(unit)
            firsts.append(len(starts))
            for place, text, name in _signed(unit, findings):
                file.write(bytes.fromhex(text))
                groups.append(inputs.setdefault(name, len(inputs)))
                starts.append(place)
        if not starts:
            return {}
        file.flush()
        signatures = np.asarray(np.memmap(file, np.uint8, "r")).reshape(len(starts), -1)
        twins = find_duplicates(signatures, np.frombuffer(groups, np.int64))
    found: dict[str, dict[str, Any]] = {}
    for later, (earlier, far) in twins.items():
        place, earlier_place = (bisect(firsts, window) - 1 for window in (later, earlier))
        unit, other, index = units[place], units[earlier_place], later - firsts[place]
        told = found.setdefault(unit.key, {"duplicates": {}})["duplicates"]
        told[str(index)] = (_told(other, starts[earlier]), far)
    return found


def _signed(unit: Unit, findings: Mapping[str, Any]) -> Iterator[tuple[float, str, str]]:
    """Place, signature and input of all windows, or clips, that a unit saw."""
    if HELD in unit.payload:
        yield from findings["rows"]
        return
    for window in findings["windows"]:
        yield window["times"][0], window["signature"], unit.payload["uri"]


def _told(unit: Unit, place: float) -> str:
    """A window, or a clip that a corpus holds, in words."""
    if HELD in unit.payload:
        return f"clip {int(place)} of {unit.payload['name']}"
    return f"{unit.payload['uri']} at {place:.2f} s"
