"""The first pass of mining: a cheap look at every input before anything is matted.

Each time span is decoded once at thumbnail size: shots, windows, what is damaged, and a signature
of every window. Then near-duplicates are found across the whole corpus; the first in input order
stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from layerflow.corpus.table import file_sha256
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder, shared_decoder
from layerflow.media.video import Limits
from manifests.mine import MineOptions
from pipelines.engine.jobs import Unit
from pipelines.inputs.listing import local_copy
from pipelines.mine.backdrop import look_times
from pipelines.mine.duplicates import find_duplicates, signature
from pipelines.mine.frames import find_bars, trim_fades
from pipelines.mine.shots import Window, cut_windows, find_shots, why_no_window
from pipelines.mine.spans import time_spans

Findings = dict[str, Any]


def survey_unit(payload: dict[str, Any], *, options: MineOptions) -> Findings:
    """What one unit holds: ``sha256``; ``shots``, for each the times of looks at it;
    ``windows`` (times, box, signature, shot); ``problems`` (stage, reason). Never raises for a bad
    input.
    """
    findings: Findings = {"sha256": "", "shots": [], "windows": [], "problems": []}
    if payload["problem"]:
        findings["problems"].append(["read", payload["problem"]])
        return findings
    decoder = shared_decoder(options.deadline)
    try:
        with local_copy(payload["location"], Limits().max_bytes) as path:
            findings["sha256"] = file_sha256(path)
            spans = [(payload["start"], payload["end"])]
            if "://" in payload["location"]:
                spans = time_spans(decoder.probe(path).seconds, options.span)
            for span in spans:
                _survey_span(decoder, path, span, options, findings)
    except (ValueError, OSError) as error:  # the file itself: fetching, probing, hashing
        findings["problems"].append(["read", str(error)])
    return findings


def _survey_span(
    decoder: Decoder, path: Any, span: tuple[float, float], options: MineOptions, found: Findings
) -> None:
    damage: list[str] = []
    splices: list[float] = []
    try:
        times, thumbs = decoder.scan(path, *span, damage=damage, splices=splices)
    except MediaError as error:
        found["problems"].append(["decode", str(error)])
        return
    if damage:  # what can be saved is used; what cannot is on record
        more = f" (and {len(damage) - 1} more like it)" if len(damage) > 1 else ""
        found["problems"].append(["decode", f"damaged: {damage[0]}{more}"])
    if not len(times):  # the picture stands still for longer than the span
        return
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else options.fps
    cuts = times.searchsorted(splices)
    shots = [trim_fades(thumbs, shot) for shot in find_shots(thumbs, rate, cuts.tolist())]
    windows: list[tuple[int, Window]] = []
    for shot in shots:
        bars = find_bars(thumbs[shot[0] : shot[1]])
        cut = cut_windows(times, shot, options.frames, options.fps, bars)
        if cut:
            windows += [(len(found["shots"]), window) for window in cut]
            found["shots"].append(look_times(times[shot[0] : shot[1]]))
    if not windows:
        reason = why_no_window(times, shots, options.frames, options.fps)
        found["problems"].append(["windows", reason])
    for place, window in windows:
        picture = thumbs[times.searchsorted(window.times)]
        if window.box is not None:
            height, width = picture.shape[1:3]
            top, bottom, left, right = window.box
            rows = slice(round(top * height), round(bottom * height))
            picture = picture[:, rows, round(left * width) : round(right * width)]
        entry = {"times": window.times, "box": window.box, "shot": place}
        found["windows"].append(entry | {"signature": signature(picture).hex()})


def plan_duplicates(surveys: Iterable[tuple[Unit, Findings]]) -> dict[str, dict[str, Any]]:
    """For each unit with windows that resemble an earlier input's: ``duplicates``, which maps the
    window's index to [uri, start seconds, duplicate_distance].

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
        found.setdefault(key, {"duplicates": {}})["duplicates"][str(index)] = [uri, start, far]
    return found
