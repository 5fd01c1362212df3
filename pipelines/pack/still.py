"""One layered still or video on its way from the plan to its corpus rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from layerflow.clip import U8, LayeredClip
from layerflow.media.decode import Decoder
from manifests.pack import PackOptions
from pipelines.inputs.layouts import Group
from pipelines.inputs.tables import TablePart, read_cells
from pipelines.pack.plan import PackPlan
from pipelines.readers.layered_stills import StillLayers
from pipelines.readers.videos import LayeredVideoReader


@dataclass(frozen=True)
class PackContext:
    """What all stills share. recipe: its hash."""

    plan: PackPlan
    options: PackOptions
    recipe: str


@dataclass(frozen=True)
class TableRow:
    """One row of a table, before its pictures are written to ``folder``."""

    part: TablePart
    cells: Mapping[str, Any]
    folder: Path


@dataclass(repr=False)
class Still:
    """What belongs together in a still or video, then what the steps find, in their order.

    said: prompts and rights of it, from tables and index files. table_row: where the files of
    ``entry`` come from, if from a table. background: uint8 ``[H, W, 3]``, known, drawn or made up;
    None where a video shows its own. drawn: where it is from, of those to draw from. chosen: the
    frames of the clip to make.
    """

    context: PackContext
    decoder: Decoder
    entry: Group
    said: Mapping[str, str]
    table_row: TableRow | None = None
    # open_layers: one of the two
    layers: StillLayers | None = None
    video: LayeredVideoReader | None = None
    # choose_background
    background: U8 | None = None
    behind: str | None = None
    scene: str = "a scene"
    drawn: Group | None = None
    # write_prompts, trace_origin
    prompts: dict[str, str] = field(init=False)
    source: dict[str, Any] = field(init=False)
    digests: list[str] = field(init=False)
    # each clip
    chosen: Sequence[int] = (0,)
    clip: LayeredClip = field(init=False)
    scores: dict[str, float] = field(init=False)
    row: dict[str, Any] = field(init=False)

    @property
    def options(self) -> PackOptions:
        return self.context.options

    @property
    def read_size(self) -> tuple[int, int] | None:
        """The size at which a video's frames are read: the clip's, if it is not larger."""
        size = self.options.size
        smaller = size and self.video and all(map(int.__le__, size, self.video.size))
        return size if smaller else None


def stills_of(
    payload: Mapping[str, Any], context: PackContext, decoder: Decoder
) -> Iterator[Still]:
    """What one unit of work is made of; the files of a table's row last until the next one."""
    plan = context.plan
    if "table" in payload:
        part, mapping = plan.tables[payload["table"]], plan.mappings[payload["table"]]
        for number, cells in read_cells(part, mapping, payload["start"], payload["stop"]):
            with TemporaryDirectory(prefix="layerflow-") as folder:
                entry = Group(f"{part.uri}#{number}", "", (), importer="dataset")
                yield Still(context, decoder, entry, {}, TableRow(part, cells, Path(folder)))
        return
    if "video" in payload:
        entries = plan.videos[payload["video"] :][:1]
    else:
        entries = plan.stills[payload["start"] : payload["stop"]]
    for entry in entries:
        yield Still(context, decoder, entry, plan.said.get(entry.uri, {}))
