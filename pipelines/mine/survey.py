"""The first pass of mining: a survey of every input before anything is matted.

Each time span is decoded once at thumbnail size: shots, windows, what is damaged, and a signature
of every window. Then near-duplicates are found across the whole corpus; the first in input order
stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from layerflow.clip import U8
from layerflow.corpus.table import file_sha256
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder, shared_decoder
from layerflow.media.video import Box, Limits
from manifests.mine import MineOptions
from pipelines.engine.jobs import Unit
from pipelines.inputs.listing import local_copy
from pipelines.mine.backdrop import backdrop_times
from pipelines.mine.duplicates import find_duplicates, signature
from pipelines.mine.frames import find_bars, trim_fades
from pipelines.mine.plan import VideoSpan, time_spans
from pipelines.mine.shots import ClipSpan, cut_windows, find_shots, why_no_window


@dataclass(frozen=True)
class Candidate(ClipSpan):
    """A window that may become a clip. shot: an index of ``Findings.shots``; signature: hex digits
    of ``duplicates.signature``."""

    shot: int = 0
    signature: str = ""


@dataclass
class Findings:
    """What one unit holds. As JSON it is the unit's findings of the first pass.

    shots: for each the times (seconds) of the frames by which its backdrop is found; problems:
    step and reason of a rejected row.
    """

    sha256: str = ""
    shots: list[tuple[float, ...]] = field(default_factory=list)
    windows: list[Candidate] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, findings: dict[str, Any]) -> Findings:
        """From the JSON of ``dataclasses.asdict``."""
        windows = [
            Candidate(tuple(w["times"]), w["box"] and tuple(w["box"]), w["shot"], w["signature"])
            for w in findings["windows"]
        ]
        return cls(findings["sha256"], findings["shots"], windows, findings["problems"])


def survey_unit(payload: dict[str, Any], *, options: MineOptions) -> dict[str, Any]:
    """The ``Findings`` of one ``VideoSpan``, as plain values. Never raises for a bad input."""
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
    before = len(findings.windows)
    for shot in shots:
        bars = find_bars(thumbs[shot[0] : shot[1]])
        places = cut_windows(times, shot, options.frames, options.fps, bars)
        for place in places:
            picture = _inside(thumbs[times.searchsorted(place.times)], place.box)
            found = Candidate(place.times, place.box, len(findings.shots), signature(picture).hex())
            findings.windows.append(found)
        if places:
            findings.shots.append(backdrop_times(times[shot[0] : shot[1]]))
    if len(findings.windows) == before:
        reason = why_no_window(times, shots, options.frames, options.fps)
        findings.problems.append(("windows", reason))


def _inside(thumbs: U8, box: Box | None) -> U8:
    """The part of thumbnails ``[N, h, w, 3]`` that lies inside a box."""
    if box is None:
        return thumbs
    height, width = thumbs.shape[1:3]
    top, bottom, left, right = box
    rows = slice(round(top * height), round(bottom * height))
    return thumbs[:, rows, round(left * width) : round(right * width)]


def plan_duplicates(surveys: Iterable[tuple[Unit, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """For each unit with windows that resemble an earlier input's: ``VideoSpan.duplicates``.

    Memory: about 0.5 kB a window.
    """
    signatures: list[bytes] = []
    groups: list[int] = []
    places: list[tuple[str, str, int, float]] = []
    inputs: dict[str, int] = {}
    for unit, findings in surveys:
        uri = unit.payload["uri"]
        for index, window in enumerate(findings["windows"]):
            signatures.append(bytes.fromhex(window["signature"]))
            groups.append(inputs.setdefault(uri, len(inputs)))
            places.append((unit.key, uri, index, window["times"][0]))
    found: dict[str, dict[str, Any]] = {}
    for later, (earlier, far) in find_duplicates(signatures, groups).items():
        key, _, index, _ = places[later]
        _, uri, _, start = places[earlier]
        twins = found.setdefault(key, {"duplicates": {}})["duplicates"]
        twins[str(index)] = (uri, start, far)
    return found
