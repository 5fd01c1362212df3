"""The units of mining: time spans of videos, with all that is said of each video."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from manifests.mine import MineOptions
from pipelines.engine.jobs import Unit, unit_key
from pipelines.inputs.chosen import choices_of
from pipelines.inputs.listing import InputVideo, tell
from pipelines.inputs.metadata import folders_say
from pipelines.inputs.prompts import Table, check_matches, entry_for, merged, prompts_of, sidecar
from pipelines.inputs.remote import remote_sidecar

WHOLE = 1e12  # an end that no video reaches
ENDS_BYTES = 64 << 10
Twin = tuple[str, float]
"""The earlier window that one resembles, in words, and duplicate_distance."""


@dataclass(frozen=True)
class VideoSpan:
    """A time span of one video; ``payload`` is that of its unit.

    location: a local path or a URL; root: the folder that its matte must lie in; uri: its name in
    the corpus; start, end: seconds; problem: why it is not to be used; prompts, licence,
    attribution, choices (``manifests.chosen``): what is said of the video. The first pass adds
    look: the file with its ``Findings``, None where it was lost for the reason ``lost``;
    duplicates: the twins of some windows, by their index; and joined: of shots that go on from an
    earlier span the start, by theirs.
    """

    location: str
    root: str
    uri: str
    start: float = 0.0
    end: float = WHOLE
    problem: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    attribution: str | None = None
    choices: list[dict[str, Any]] = field(default_factory=list)
    look: str | None = None
    lost: str | None = None
    duplicates: dict[str, Twin] = field(default_factory=dict)
    joined: dict[str, float] = field(default_factory=dict)

    @property
    def remote(self) -> bool:
        return "://" in self.location

    @property
    def payload(self) -> dict[str, Any]:
        """Plain values to make it from: a million units hold no empty fields."""
        always = ("location", "root", "uri", "start", "end")
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        return {name: value for name, value in values if value or name in always}


def plan_units(
    sources: Sequence[InputVideo], options: MineOptions, table: Table | None = None
) -> list[Unit]:
    """One unit per time span of each local video, one per remote video.

    table: of prompts. A video that cannot be probed, whose sidecar is broken, or whose licence
    cannot be read, is one unit that reports it.
    """
    if table is not None and options.prompts:
        names = {source.uri: "" for source in sources}
        if unnamed := check_matches(table, names, options.prompts):
            tell(unnamed)
    units: list[Unit] = []
    local = [source.path for source in sources if not source.remote]
    lengths = iter(_durations(local, options.deadline))
    uris: Counter[str] = Counter()
    prompts: dict[str, str] = {}
    for source in sources:
        location = source.location if source.remote else os.path.abspath(source.location)
        video = VideoSpan(location, sys.intern(os.path.abspath(source.root)), source.uri)
        content: list[object] = [0]
        spans = [(0.0, WHOLE)]
        try:
            length = 0.0 if source.remote else next(lengths)
            if source.problem:
                raise ValueError(source.problem)
            video = _with_what_is_said(video, source, table, options)
            if video.prompts == prompts:  # a template's: one for all
                video = replace(video, prompts=prompts)
            prompts = video.prompts
            if isinstance(length, str):
                raise ValueError(length)
            if not source.remote:
                content = [source.path.stat().st_size, _ends(source.path)]
                spans = time_spans(length, options.span)
        except (ValueError, OSError) as error:
            video = replace(video, problem=str(error))
        # Addresses that differ in what is not recorded have one uri.
        again: list[object] = [uris[source.uri]] if uris[source.uri] else []
        again += [video.choices] if video.choices else []
        uris[source.uri] += 1
        for start, end in spans:
            key = unit_key(source.uri, *content, start, end, *again)
            units.append(Unit(key, len(units), replace(video, start=start, end=end).payload))
    return units


def _ends(path: Path) -> str:
    """A hash of a file's first and last bytes: names and sizes recur in a corpus that grows."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(ENDS_BYTES))
        file.seek(max(0, path.stat().st_size - ENDS_BYTES))
        digest.update(file.read(ENDS_BYTES))
    return digest.hexdigest()[:16]


def time_spans(seconds: float, span: float) -> list[tuple[float, float]]:
    """Time spans of ``span`` seconds; the last one has no end and may be a quarter longer."""
    count = max(1, math.ceil(seconds / span - 0.25))
    ends = [*((index + 1) * span for index in range(count - 1)), WHOLE]
    return [(index * span, end) for index, end in enumerate(ends)]


def _durations(paths: Sequence[Path], deadline: float) -> list[float | str]:
    """Seconds of each file, or what is wrong with it; a few decoders at a time."""
    count = min(8, os.cpu_count() or 1, len(paths))

    def probe(own: Sequence[Path]) -> list[float | str]:
        found: list[float | str] = []
        with Decoder(deadline=deadline) as decoder:
            for path in own:
                try:
                    found.append(decoder.duration(path))
                except MediaError as error:
                    found.append(str(error))
        return found

    lengths: list[float | str] = [""] * len(paths)
    if paths:
        with ThreadPoolExecutor(count) as pool:
            shares = pool.map(probe, [paths[i::count] for i in range(count)])
            for i, share in enumerate(shares):
                lengths[i::count] = share
    return lengths


def _with_what_is_said(
    video: VideoSpan, source: InputVideo, table: Table | None, options: MineOptions
) -> VideoSpan:
    """The video with its prompts, licence, attribution and the subject that is chosen by hand.

    Prompts: the row that named it, the table of prompts, its sidecar, the template, layer by layer.
    Rights: all that these and the JSON of its folders say; the job's own where they say nothing.
    """
    path, root = None if source.remote else source.path, Path(source.root)
    beside = remote_sidecar(source.location, source.beside) if path is None else sidecar(path, root)
    folders = [] if path is None else folders_say([path], root)
    said = merged(source.row, entry_for(source.uri, table), beside, *folders)
    return replace(
        video,
        prompts=prompts_of(said),
        licence=said.get("licence") or options.licence,
        attribution=said.get("attribution") or options.attribution,
        choices=choices_of(said, options.choice),
    )
