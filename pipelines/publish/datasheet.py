"""The sections of a card that a datasheet has: why, how collected, uses, removal, reproduction.

What the corpus knows is filled in from it. What it cannot know is a place for the author, between
two comments; what stands there is kept when the card is written again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from layerflow.weights import REGISTRY
from pipelines.publish.markdown import plain, table

MAX_SOURCES = 50
MAX_PLACE = 20_000
PLACES = {
    "motivation": "for what purpose the set was made, by whom, and who paid for it",
    "consent": "whether the people and owners shown were asked, and how they agreed",
    "collection": "how the sources were found and chosen, over which time, and what was left out",
    "uses": "what it has been used for, and what it should not be used for",
    "maintenance": "who answers for it, how to reach them, and how long it will be kept",
}
"""Places for the author -> what is to be said there."""
_PLACE = re.compile(r"<!-- author: (\w+) -->\n(.*?)\n<!-- /author -->", re.DOTALL)


def said_by_author(card: str) -> dict[str, str]:
    """What stands in the author's places of a card, those that were filled in."""
    found = {name: text.strip() for name, text in _PLACE.findall(card)}
    return {
        name: text[:MAX_PLACE]
        for name, text in found.items()
        if name in PLACES and text and not text.startswith("**To be filled in by the author:**")
    }


def place(name: str, said: Mapping[str, str]) -> str:
    """A place for the author: what was said there before, or what is to be said."""
    text = said.get(name) or f"**To be filled in by the author:** {PLACES[name]}."
    return f"<!-- author: {name} -->\n{text}\n<!-- /author -->"


def motivation(facts: Any) -> str:
    return (
        "## Motivation\n\n"
        "Clips with known layers are what models of layered video are trained and measured on.\n\n"
        + place("motivation", facts.said)
    )


def collection(facts: Any) -> str:
    how = {
        "mined": "matted from real video by a program; background and foreground were worked out",
        "pasted": "a matted foreground drawn over another background, exact by construction",
        "image": "stills that came with layers or a matte",
    }
    counts = facts.stats["kinds"]
    rows = [(kind, s["clips"], s["sources"], how.get(kind, "")) for kind, s in counts.items()]
    rejected = facts.stats["rejected"]["rows"]
    return "\n\n".join(
        [
            "## Collection",
            table(("kind", "clips", "sources", "how"), rows),
            f"{rejected} windows or inputs were looked at and not taken (see how it was made).",
            place("collection", facts.said),
        ]
    )


def consent(facts: Any) -> str:
    """Sources with licence, clips, hours and what the licence asks; most clips first."""
    sources = list(facts.audited.get("sources", {}).items())
    sources.sort(key=lambda item: (-item[1]["clips"], item[0]))
    rows = [
        (name, "; ".join(s["names"]), "; ".join(s["attributions"]), s["clips"],
         f"{s['hours']:.4f}", ", ".join(s["asks"]))
        for name, s in sources[:MAX_SOURCES]
    ]  # fmt: skip
    lines = [
        "### Sources and consent",
        "A clip made of several sources counts for each. Hours are those of moving clips.",
        table(("source", "licence", "attribution", "clips", "hours", "forbids or asks"), rows),
    ]
    if len(sources) > MAX_SOURCES:
        more = len(sources) - MAX_SOURCES
        lines.append(f"... and {more} more sources; all are in [LICENSE.md](LICENSE.md).")
    lines.append("Whether people or owners agreed is not on record in the corpus.")
    return "\n\n".join([*lines, place("consent", facts.said)])


def uses(facts: Any) -> str:
    lines = [
        "Training and measuring models that generate, decompose or complete layers; matting; "
        "compositing.",
        "Scores choose clips: a model that needs exact layers should leave out `mined` clips, or "
        "choose them by `matte_agreement`, `unseen_fraction` and `recomposition_error`.",
    ]
    if any("non-commercial" in s["asks"] for s in facts.audited.get("licences", {}).values()):
        lines.append("Some sources allow non-commercial use only; see the licences.")
    return "## Uses\n\n" + "\n\n".join([*lines, place("uses", facts.said)])


def maintenance(facts: Any) -> str:
    removed = facts.audited.get("removed", ())
    lines = [
        "## Maintenance",
        "**To have something removed**, open a discussion in this repository, or write to the "
        "author, and name the source (its address as in `origin.uri`) or the `id` of clips. "
        "Everything that was made of it goes in the next version, and the corpus' own tools keep "
        "it from coming back. Copies that others made, and models that were trained on it, are "
        "out of reach.",
    ]
    if removed:
        rows = [(entry["date"], entry["by"], entry["rows"]) for entry in removed]
        lines += ["Removed so far:", table(("date", "by", "clips"), rows)]
    return "\n\n".join([*lines, place("maintenance", facts.said)])


def reproduce(facts: Any) -> str:
    """What is needed to make the clips again: versions, recipes, weights."""
    recipes = facts.stats.get("recipe", {})
    lines = [
        "## How to reproduce",
        f"Toolkit {_version()}, recipes "
        + (", ".join(f"`{plain(name)}` ({count} clips)" for name, count in recipes.items()) or "-")
        + ". A recipe is the hash of a job, its options and the version of its format; the same "
        "recipe on the same sources gives the same rows. The options are under "
        '"How it was made"; as a manifest they go to `layerflow build`. Each '
        "source's sha256 is in `origin`.",
    ]
    rows = list(_weights(facts.made))
    if rows:
        lines += ["Weights:", table(("backend", "weights", "sha256"), rows)]
    return "\n\n".join(lines)


def _version() -> str:
    try:
        return version("layerflow-toolkit")
    except PackageNotFoundError:
        return "of unknown version"


def _weights(made: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(backend, weights, sha256) of what the recorded jobs may have used."""
    found: dict[tuple[str, str], str] = {}
    for options in _options(made):
        backend, named = options.get("matting"), options.get("weights")
        for entry in REGISTRY:
            if isinstance(backend, str) and backend in entry.backends:
                where = "where it was there" if backend == "auto" else "known to the toolkit"
                found[backend, f"{entry.name}, {where}"] = entry.sha256
        if isinstance(named, str) and named:
            found[str(backend), named] = "not on record"
    yield from ((*key, digest) for key, digest in sorted(found.items()))


def _options(made: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    options = made.get("options")
    if isinstance(options, Mapping):
        yield options
    parents = made.get("made_from")
    for parent in parents if isinstance(parents, list) else ():
        if isinstance(parent, Mapping):
            yield from _options(parent)
