"""The units of mining: time spans of videos, with all that is said of each video."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder, shared_decoder
from manifests.mine import MineOptions
from pipelines.engine.asking import answers
from pipelines.engine.jobs import Unit, unit_key
from pipelines.engine.staging import InfrastructureError, missing_input
from pipelines.engine.workers import Pool
from pipelines.inputs.chosen import choices_of
from pipelines.inputs.listing import InputVideo, tell
from pipelines.inputs.metadata import folders_say
from pipelines.inputs.prompts import Table, check_matches, entry_for, merged, prompts_of, sidecar
from pipelines.inputs.remote import remote_sidecar

WHOLE = 1e12  # an end that no video reaches
HERE = Pool(0)
MANY, BATCH = 2000, 256
"""Videos from which on workers look at them, and of which a worker looks at so many in one go: one
costs milliseconds, on a disk of the network or with a remote sidecar some ten of them."""
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
    sources: Sequence[InputVideo],
    options: MineOptions,
    table: Table | None = None,
    pool: Pool = HERE,
) -> list[Unit]:
    """One unit per time span of each local video, one per remote video.

    table: of prompts. A video that cannot be probed, whose sidecar is broken, or whose licence
    cannot be read, is one unit that reports it. pool: of the workers that look at the videos if
    these are many; InfrastructureError where one does not see them.
    """
    if table is not None and options.prompts:
        names = {source.uri: "" for source in sources}
        if unnamed := check_matches(table, names, options.prompts):
            tell(unnamed)
    units: list[Unit] = []
    uris: Counter[str] = Counter()
    prompts: dict[str, str] = {}
    for source, told in zip(sources, _looks(sources, options, table, pool), strict=True):
        spans, content = told.pop("spans"), told.pop("content")
        if told.get("prompts") == prompts:  # a template's: one for all
            told["prompts"] = prompts
        prompts = told.get("prompts", prompts)
        video = VideoSpan(**_place(source), **told)
        # Addresses that differ in what is not recorded have one uri.
        again: list[object] = [uris[source.uri]] if uris[source.uri] else []
        again += [video.choices] if video.choices else []
        uris[source.uri] += 1
        for start, end in spans:
            key = unit_key(source.uri, *content, start, end, *again)
            units.append(Unit(key, len(units), replace(video, start=start, end=end).payload))
    return units


def _place(source: InputVideo) -> dict[str, Any]:
    location = source.location if source.remote else os.path.abspath(source.location)
    root = sys.intern(os.path.abspath(source.root))
    return {"location": location, "root": root, "uri": source.uri}


def _looks(
    sources: Sequence[InputVideo], options: MineOptions, table: Table | None, pool: Pool
) -> Iterable[dict[str, Any]]:
    """``_look`` of all videos, in order."""
    costly = sum(1 for source in sources if not source.remote or source.beside)
    if pool.workers == 0 or costly <= MANY:
        return _look(sources, options, table, min(8, os.cpu_count() or 1))
    batches = (sources[first : first + BATCH] for first in range(0, len(sources), BATCH))
    asked = ({"videos": [asdict(one) | _place(one) for one in some]} for some in batches)
    return chain.from_iterable(answers(asked, partial(_answer, options, table), pool))


def _answer(
    options: MineOptions, table: Table | None, asked: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """``_look`` of a batch, in a worker."""
    videos = [InputVideo(**video) for video in asked["videos"]]
    unseen = missing_input({video.root for video in videos if not video.remote})
    if unseen is not None:
        raise InfrastructureError(unseen)
    return list(_look(videos, options, table, 1))


def _look(
    sources: Sequence[InputVideo], options: MineOptions, table: Table | None, decoders: int
) -> Iterator[dict[str, Any]]:
    """What is to know of each video: its ``spans``; its ``content``, which tells it from others of
    its name; and fields of a ``VideoSpan``, as plain values."""
    local = [source.path for source in sources if not source.remote]
    lengths = iter(_durations(local, options.deadline, decoders))
    for source in sources:
        told: dict[str, Any] = {"spans": [(0.0, WHOLE)], "content": [0]}
        length = 0.0 if source.remote else next(lengths)
        try:
            if source.problem:
                raise ValueError(source.problem)
            told |= _said_of(source, table, options)
            if isinstance(length, str):
                raise ValueError(length)
            if not source.remote:
                told["content"] = [source.path.stat().st_size, _ends(source.path)]
                told["spans"] = time_spans(length, options.span)
        except (ValueError, OSError) as error:
            told["problem"] = str(error)
        yield told


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


def _durations(paths: Sequence[Path], deadline: float, decoders: int) -> list[float | str]:
    """Seconds of each file, or what is wrong with it; by so many decoders at a time."""
    count = min(decoders, len(paths))

    def probe(own: Sequence[Path], decoder: Decoder) -> list[float | str]:
        found: list[float | str] = []
        for path in own:
            try:
                found.append(decoder.duration(path))
            except MediaError as error:
                found.append(str(error))
        return found

    def probe_with_one(own: Sequence[Path]) -> list[float | str]:
        with Decoder(deadline=deadline) as decoder:
            return probe(own, decoder)

    if not paths:
        return []
    if count == 1:
        return probe(paths, shared_decoder(deadline))
    lengths: list[float | str] = [""] * len(paths)
    with ThreadPoolExecutor(count) as pool:
        shares = pool.map(probe_with_one, [paths[i::count] for i in range(count)])
        for i, share in enumerate(shares):
            lengths[i::count] = share
    return lengths


def _said_of(source: InputVideo, table: Table | None, options: MineOptions) -> dict[str, Any]:
    """The prompts, licence and attribution of a video, and the subject that is chosen by hand.

    Prompts: the row that named it, the table of prompts, its sidecar, the template, layer by layer.
    Rights: all that these and the JSON of its folders say; the job's own where they say nothing.
    """
    path, root = None if source.remote else source.path, Path(source.root)
    beside = remote_sidecar(source.location, source.beside) if path is None else sidecar(path, root)
    folders = [] if path is None else folders_say([path], root)
    said = merged(source.row, entry_for(source.uri, table), beside, *folders)
    return {
        "prompts": prompts_of(said),
        "licence": said.get("licence") or options.licence,
        "attribution": said.get("attribution") or options.attribution,
        "choices": choices_of(said, options.choice),
    }
