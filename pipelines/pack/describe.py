"""The steps that say what a packed still shows and where it is from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, PROMPTED
from layerflow.corpus.columns import RIGHTS
from layerflow.corpus.table import file_sha256, origin
from layerflow.locations import root_of
from pipelines.inputs.layouts import Group, words_of
from pipelines.inputs.metadata import folder_prompts, said_of
from pipelines.inputs.prompts import Table, merged, sidecar
from pipelines.pack.still import Still
from pipelines.publish.licences import all_of


def write_prompts(still: Still) -> None:
    """Write the prompts: what is said of it, else words of its name."""
    if still.video is not None:
        folder = still.entry.files[0][1].parent
        still.said = merged(still.said, folder_prompts(folder))
    own = {} if still.layers is None else still.layers.prompts
    still.prompts = still_prompts(still.entry, still.said, still.scene, own)


def trace_origin(still: Still) -> None:
    """Record files, parents, licence and attribution."""
    made_of = [still.entry]
    said, paths = {still.entry.uri: still.said}, [path for _, path in still.entry.files]
    if still.drawn is not None:
        made_of.append(still.drawn)
        said[still.drawn.uri] = still.context.plan.said.get(still.drawn.uri, {})
        if still.video is None:
            paths.append(still.drawn.files[0][1])
    digests = [file_sha256(path) for path in paths]
    digest = digests[0]
    if still.video is not None or len(paths) > 1:
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    still.digests = digests if still.video is None else [digest]
    options = still.options
    default = {"licence": options.licence, "attribution": options.attribution}
    held = clip_rights(made_of, said, default)
    parents = [entry.uri for entry in made_of]
    still.source = origin(still.entry.uri, digest, parents=parents) | held


def still_prompts(
    group: Group, said: Mapping[str, str], behind: str, own: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Prompts of a still: what is said of it, a sidecar, its own annotation, or its file name.

    behind: what the background shows, if nothing better is known. Raises ValueError for a broken
    sidecar.
    """
    given = {layer: said[layer] for layer in PROMPTED if said.get(layer)}
    roles = group.roles
    shown = [roles[r] for r in ("file", FOREGROUND, BLENDED, ALPHA) if r in roles]
    if shown:
        shown.append(shown[0].with_name(f"{group.name}.png"))  # x.json beside x_alpha.png
    for path in shown:
        for layer, text in sidecar(path, root_of(path, group.uri)).items():
            if layer in PROMPTED:
                given.setdefault(layer, text)
    behind_it = roles.get(BACKGROUND)
    scenery = {} if behind_it is None else sidecar(behind_it, root_of(behind_it, group.uri))
    if scenery:  # speaks of the background alone
        alone = scenery.get(BACKGROUND) or scenery.get(BLENDED)
        given.setdefault(BACKGROUND, alone or behind)
    for layer, text in (own or {}).items():
        if text:
            given.setdefault(layer, text)
    subject = given.get(FOREGROUND) or given.get(BLENDED) or words_of(group.name) or "an object"
    scene = given.get(BACKGROUND) or behind
    whole = given.get(BLENDED) or f"{subject}, {scene}"
    return {FOREGROUND: subject, BACKGROUND: scene, BLENDED: whole}


def clip_rights(
    made_of: Sequence[Group], table: Table, default: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Licence and attribution of what a clip is made of: all of them hold.

    table: what is told by uri. default: of what states none itself.
    """
    stated = [
        said_of(entry.uri, entry.name, [path for _, path in entry.files], table.get(entry.uri))
        for entry in made_of
    ]
    return {
        name: all_of([held.get(name) or default[name] for held in stated], name) for name in RIGHTS
    }
