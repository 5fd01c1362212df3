"""Importers of sets whose files belong together by their names.

To name a layout adds a check that nothing is missing; ``ANY`` takes all of them alike.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.inputs.importers import Importer, Listing
from pipelines.inputs.index_files import index_of
from pipelines.inputs.layouts import group_files, split_videos
from pipelines.inputs.listing import STILL_SUFFIXES, VIDEO_SUFFIXES
from pipelines.inputs.twins import Twins
from pipelines.readers.photoshop import SUFFIXES as DOCUMENT_SUFFIXES


@dataclass(frozen=True)
class Grouped(Importer):
    """Files that belong together by their names. needs: sets of roles of which one must be there;
    videos, stills: what is taken."""

    name: str
    needs: tuple[set[str], ...] = ()
    videos: bool = True
    stills: bool = True
    suffixes: frozenset[str] = STILL_SUFFIXES | VIDEO_SUFFIXES | DOCUMENT_SUFFIXES

    def list(self, root: Path) -> Listing:
        if self.name == "psd" and importlib.util.find_spec("psd_tools") is None:
            raise ValueError("--layout psd needs psd-tools: pip install 'layerflow-toolkit[psd]'")
        groups = group_files(root, self.suffixes, Twins(asked=self.name == "pairs"))
        videos, stills = split_videos(groups) if self.videos else ([], groups)
        return Listing(
            [replace(e, problem=self._lacking(e.roles)) for e in stills] if self.stills else [],
            [replace(e, problem=self._lacking(e.roles)) for e in videos],
            prompts=dict(index_of(root)),
        )

    def _lacking(self, roles: Iterable[str]) -> str | None:
        found = set(roles)
        if not self.needs or any(need <= found for need in self.needs):
            return None
        wanted = " or ".join(" + ".join(sorted(need)) for need in self.needs)
        return f"layout {self.name} needs {wanted}; here is {' + '.join(sorted(found))}"


_MATTED, _TRIPLET = {"blended", "alpha"}, {"blended", "alpha", "background"}
RGBA = Grouped("rgba", ({"file"}, {"foreground"}), videos=False, suffixes=STILL_SUFFIXES)
PAIRS = Grouped("pairs", (_MATTED, {"foreground", "alpha"}), videos=False)
MATTING = Grouped("matting", ({"foreground", "alpha"},))
TRIPLETS = Grouped("triplets", (_TRIPLET,))
DAVIS = Grouped("davis", (_MATTED,), stills=False)
LAYERFLOW = Grouped("layerflow", (_TRIPLET, {"foreground", *_TRIPLET}), stills=False)
VIDLAYER = Grouped("vidlayer", (_TRIPLET,), stills=False)
PSD = Grouped("psd", videos=False, suffixes=DOCUMENT_SUFFIXES)
STILLS = Grouped("stills", videos=False, suffixes=STILL_SUFFIXES)
VIDEOS = Grouped("films", stills=False, suffixes=STILL_SUFFIXES | VIDEO_SUFFIXES)
ANY = Grouped("auto")
