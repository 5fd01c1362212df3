"""The dataset card: YAML metadata that ``datasets`` and the viewer read, and what people need.

Everything in it comes from the corpus: counts, scores, licences, the options it was made with.
Texts of a corpus are escaped, so that none of them can become markup or a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from layerflow.corpus.columns import COLUMNS
from layerflow.corpus.scores import meaning
from layerflow.corpus.stats import NO_LICENCE
from layerflow.locations import clean_uri
from manifests.yaml_file import parse_yaml
from pipelines.publish import datasheet
from pipelines.publish.layout import patterns
from pipelines.publish.licences import LicenceReport, hub_licence, hub_licences
from pipelines.publish.markdown import plain as plain
from pipelines.publish.markdown import table
from pipelines.publish.pictures import GATE

PREVIEW = "preview"
REJECTED = "rejected"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TASKS = ["text-to-video", "image-to-video", "video-to-video", "image-segmentation"]
TAGS = ["layered-video", "alpha-matting", "video-matting", "compositing", "layerflow", "video"]
MAX_LISTED = 200
MAX_SOURCES = 5000
LICENCE_COLUMNS = ("licence", "attribution", "made of", "clips", "hours")


MEASURED = (
    ("matte_agreement", "How well mattes capture the seeds that they grew from (1 is best)", "p5"),
    ("matte_stability", "Agreement of the last two passes of matting (1 is best)", "p5"),
    ("unseen_fraction", "Share of the hole behind the subject that no frame showed", "p95"),
    ("recomposition_error", "Levels by which the layers miss the video", "p95"),
)
"""Scores that say how far layers can be trusted, in words, and where their bad end is."""


@dataclass(frozen=True)
class ConfigInfo:
    """One configuration: its folder, its features, and per split rows, bytes in memory and bytes
    of files, and the names of these."""

    name: str
    folder: str
    features: Any
    splits: dict[str, tuple[int, int, int]]
    files: Mapping[str, Sequence[str]]

    def info(self) -> dict[str, Any]:
        """The ``dataset_info`` entry, as ``datasets`` writes it."""
        splits = [
            {"name": name, "num_bytes": held, "num_examples": rows}
            for name, (rows, held, _) in self.splits.items()
        ]
        return {
            "config_name": self.name,
            "features": self.features._to_yaml_list(),
            "splits": splits,
            "download_size": sum(files for _, _, files in self.splits.values()),
            "dataset_size": sum(held for _, held, _ in self.splits.values()),
        }


@dataclass(frozen=True)
class CardFacts:
    """What the card says. ``stats``: of ``layerflow.corpus.stats``; ``made``: ``corpus.json``;
    ``audited``: of ``pipelines.audit``; ``said``: what the author filled in before."""

    repo_id: str
    configs: Sequence[ConfigInfo]
    stats: Mapping[str, Any]
    made: Mapping[str, Any]
    licences: LicenceReport
    licence: str | None
    shared_backgrounds: int
    encoded_rms: Mapping[str, float]
    audited: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)


def make_card(facts: CardFacts, existing: str | None = None) -> str:
    """README.md. ``existing``: the card that is there now, whose other configurations stay, and
    what its author filled in."""
    facts = replace(facts, said=datasheet.said_by_author(existing or ""))
    metadata = card_metadata(facts, read_metadata(existing or ""))
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=100)
    sections = (
        *(_intro, _loading, datasheet.motivation, _contents, _columns, _scores),
        *(datasheet.collection, _licences, datasheet.consent, datasheet.uses, _limits),
        *(datasheet.maintenance, datasheet.reproduce, _made),
    )
    return f"---\n{header}---\n\n" + "\n\n".join(section(facts) for section in sections) + "\n"


def is_foreign(card: str) -> bool:
    """Whether a card has a text that this module did not write: it would be lost."""
    metadata = read_metadata(card)
    body = card.split("---\n", 2)[2] if metadata else card
    tags = metadata.get("tags")
    return bool(body.strip()) and not (isinstance(tags, list) and "layerflow" in tags)


def read_metadata(card: str) -> dict[str, Any]:
    """The YAML block of a card; empty when there is none or it is no mapping."""
    parts = card.split("---\n", 2)
    if not card.startswith("---\n") or len(parts) < 3:
        return {}
    try:
        found = parse_yaml(parts[1], "README.md")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def card_metadata(facts: CardFacts, existing: Mapping[str, Any]) -> dict[str, Any]:
    """License, tags, sizes, configurations and features, as the Hub documents them."""
    names = {config.name for config in facts.configs}
    configs: list[dict[str, Any]] = []
    for config in facts.configs:
        files = [
            {"split": split, "path": found if len(found) > 1 else found[0]}
            for split, names in config.files.items()
            for found in [patterns(config.folder, split, names)]
        ]
        configs.append({"config_name": config.name, "data_files": files})
    others = [c for c in _list(existing.get("configs")) if c.get("config_name") not in names]
    if not any(config.get("default") for config in others):
        configs[0]["default"] = True
    infos = [config.info() for config in facts.configs]
    kept = [i for i in _list(existing.get("dataset_info")) if i.get("config_name") not in names]
    size = next((label for most, label in SIZES if facts.stats["rows"] < most), "n>1M")
    return {
        **_licence_fields(facts),
        "pretty_name": facts.repo_id.rpartition("/")[2].replace("-", " "),
        "task_categories": TASKS,
        "tags": TAGS,
        "size_categories": [size],
        "configs": configs + others,
        "dataset_info": infos + kept,
    }


def _list(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _licence_fields(facts: CardFacts) -> dict[str, Any]:
    if facts.licence:
        known = hub_licence(facts.licence)
        if known:
            return {"license": known}
        name = facts.licence.lower().replace(" ", "-")
        return {"license": "other", "license_name": name, "license_link": "LICENSE.md"}
    stated = [name for name in facts.licences.counts if name != NO_LICENCE]
    ids = {part for name in stated for part in hub_licences(name)}
    if facts.licences.unstated == 0 and ids and None not in ids:
        found = sorted(str(name) for name in ids)
        return {"license": found[0] if len(found) == 1 else found}
    return {"license": "other", "license_name": "per-clip", "license_link": "LICENSE.md"}


def _intro(facts: CardFacts) -> str:
    stats = facts.stats
    long = stats["seconds"] >= 3600
    length = f"{stats['seconds'] / 3600:.1f} hours" if long else f"{stats['seconds']:.0f} seconds"
    kinds = ", ".join(f"{share['clips']} {kind}" for kind, share in stats["kinds"].items())
    return (
        f"# {plain(facts.repo_id.rpartition('/')[2])}\n\n"
        f"{stats['rows']:,} layered clips ({kinds}), {length}. "
        "A layered clip is one short video seen as layers: a transparent **foreground** (straight "
        "colour and **alpha**), a clean **background**, and the **blended** scene that they make, "
        "with a caption of each. The layers are those that LayerFlow "
        "([arXiv 2506.04228](https://arxiv.org/abs/2506.04228)) is trained on.\n\n"
        "![blended, foreground on checkerboard, alpha and background of some clips]"
        "(contact_sheet.png)"
    )


def _loading(facts: CardFacts) -> str:
    main = facts.configs[0]
    name = "" if main.name == "default" else f', "{main.name}"'
    split = next(iter(main.splits))
    return f"""## How to load

```python
from datasets import load_dataset

clips = load_dataset("{facts.repo_id}"{name}, split="{split}", streaming=True)
clip = next(iter(clips))
clip["blended"]["bytes"]  # an encoded file: MP4, FFV1 in Matroska for alpha, PNG for stills
```

No video decoder is needed to iterate. `columns=["id", "kind", "quality"]` leaves the media on the
Hub. The configuration `{facts.configs[1].name}` holds one small video a clip that plays in the
viewer. Without any toolkit, PyAV decodes a layer; alpha comes out exactly as it went in:

```python
import io
import av

with av.open(io.BytesIO(clip["alpha"]["bytes"])) as file:
    alpha = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
```

With the LayerFlow toolkit all layers are arrays at once:

```python
from layerflow.corpus.table import decode_row
from layerflow.corpus.published import local_row

layers = decode_row(local_row(clip))
layers.blended, layers.foreground, layers.background  # uint8 [frames, height, width, 3], RGB
layers.alpha, layers.prompts  # uint8 [frames, height, width]; a caption by layer
```"""


def _contents(facts: CardFacts) -> str:
    counts = ("clips", "sources", "frames")
    rows = [
        (kind, *(s[name] for name in counts), f"{s['seconds']:.0f}", f"{s['bytes'] / 1e6:.1f}")
        for kind, s in facts.stats["kinds"].items()
    ]
    splits = [(name, rows) for name, (rows, _, _) in facts.configs[0].splits.items()]
    sizes = ", ".join(f"{plain(s)} ({n})" for s, n in facts.stats["size"].items())
    text = [
        "## Composition\n",
        table(("kind", *counts, "seconds", "MB"), rows),
        f"\nSizes: {sizes or 'none'}.\n",
        table(("split", "clips"), splits),
    ]
    if len(splits) > 1:
        text.append(
            "\nAll clips of one foreground source are in one split. Background sources in more "
            f"than one split: {facts.shared_backgrounds}."
        )
    return "\n".join(text)


def _columns(facts: CardFacts) -> str:
    rows: dict[str, list[str]] = {}  # what a column holds -> the columns that hold it
    for column in COLUMNS:
        if column.always or column.name in facts.configs[0].features:
            rows.setdefault(column.holds, []).append(column.name)
    listed = [(", ".join(names), holds) for holds, names in rows.items()]
    return "## Columns\n\n" + table(("column", "holds"), listed)


def _scores(facts: CardFacts) -> str:
    scores = facts.stats["scores"]
    points = ("count", "min", "p5", "p50", "p95", "max")
    rows = [(n, *(f"{v[p]:.4g}" for p in points), meaning(n)) for n, v in scores.items()]
    if not rows:
        return "## Scores\n\nNo clip has a score."
    picture = (
        "![how many clips have which value of each score; lines are the limits of the quality "
        f"gate](scores.png)\n\nLines in the pictures: limits of the gate `{GATE}`."
    )
    return f"## Scores\n\n{table(('score', *points, 'says'), rows)}\n\n{picture}"


def _licences(facts: CardFacts) -> str:
    report = facts.licences
    lines = [
        "## Licences\n",
        "Every clip keeps the licence and the attribution of its source in `origin`; by source "
        "they are in [LICENSE.md](LICENSE.md).\n",
        table(
            ("licence", "clips", "hours", "sources"),
            [
                (n, s["clips"], f"{s['seconds'] / 3600:.4f}", s["sources"])
                for n, s in facts.stats["licences"].items()
            ],
        ),
    ]
    if report.unstated:
        named = ", ".join(plain(uri, 80) for uri in report.unstated_sources)
        lines.append(f"\n**{report.unstated} clips have no licence on record**, from: {named}.")
    if report.non_commercial:
        lines.append("\nSome clips may be used for non-commercial purposes only.")
    if report.share_alike:
        lines.append("\nSome licences ask that adaptations are shared under the same licence.")
    if report.forbidding:
        lines.append(
            f"\n{sum(report.forbidding.values())} clips have a licence that forbids "
            "redistribution; whoever published this repository acknowledged that."
        )
    return "\n".join(lines)


def _made(facts: CardFacts) -> str:
    made = recorded(facts.made)
    text = yaml.safe_dump(made, sort_keys=True, allow_unicode=False, width=100)
    text = "".join(f"    {line}\n" for line in text.splitlines())  # indented: no fence to break out
    rejected = facts.stats["rejected"]
    lines = [
        "## How it was made\n",
        "With the LayerFlow toolkit; these are the recorded job, options and counts:\n",
        text,
        f"{rejected['rows']} inputs or windows were rejected.\n",
    ]
    if rejected["reasons"]:
        reasons = list(rejected["reasons"].items())[:MAX_LISTED]
        lines.append(table(("stage and reason", "rows"), reasons))
    return "\n".join(lines)


def recorded(made: Mapping[str, Any]) -> dict[str, Any]:
    """What a job or its parents recorded, without what only matters to resuming it."""
    kept = {k: v for k, v in made.items() if k not in ("plan", "reasons", "units", "state")}
    if isinstance(kept.get("made_from"), list):
        kept["made_from"] = [recorded(p) if isinstance(p, dict) else p for p in kept["made_from"]]
    return kept


def _limits(facts: CardFacts) -> str:
    stats, scores = facts.stats, facts.stats["scores"]
    lines = ["Colour layers of moving clips are coded with loss; alpha and stills are exact."]
    lines += [
        f"In {kind} clips the decoded blended layer is {rms:.2f} levels rms (of 255) from the "
        "recomposition of the decoded layers, measured on a sample."
        for kind, rms in facts.encoded_rms.items()
        if kind != "image"
    ]
    if "mined" in stats["kinds"]:
        lines.append(
            "Mattes and backgrounds of mined clips were computed, not drawn by people: use the "
            "scores to choose. Their blended layer is the real video, so it is not exactly the "
            "composite of the other layers."
        )
    lines += [
        f"{what}: median {scores[name]['p50']:.3g}, worst twentieth {scores[name][tail]:.3g} "
        f"and {'below' if tail == 'p5' else 'above'}, of {scores[name]['count']} clips."
        for name, what, tail in MEASURED
        if name in scores
    ]
    made_up = sum(n for kind, n in stats["background_kind"].items() if kind != "real")
    if made_up:
        lines.append(f"The background of {made_up} clips is in part filled or inpainted.")
    empty = {layer: p["empty"] for layer, p in stats["prompts"].items() if p["empty"]}
    if empty:
        named = ", ".join(f"{count} {layer}" for layer, count in empty.items())
        lines.append(f"Empty prompts: {named}.")
    if stats["duplicates"]["rows"]:
        lines.append(f"{stats['duplicates']['rows']} clips repeat the media of another.")
    return "## Known limits\n\n" + "\n".join(f"- {line}" for line in lines)


def licence_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """LICENSE.md: clips and hours by (licence, attribution, source and what else the clip was made
    of), of corpus rows (their small columns); the first 5000 of these, in bounded memory."""
    found: dict[tuple[str, str, str], tuple[int, float]] = {}
    last: tuple[str, str, str] | None = None  # entries after it are left out
    for row in rows:
        key = _source(row)
        if last is None or key <= last:
            clips, seconds = found.get(key, (0, 0.0))
            length = row["num_frames"] / row["fps"] if row["kind"] != "image" else 0.0
            found[key] = clips + 1, seconds + length
        if len(found) > 4 * MAX_SOURCES:
            first = sorted(found)[:MAX_SOURCES]
            found, last = {key: found[key] for key in first}, first[-1]
    listed = sorted(found.items())[:MAX_SOURCES]
    lines = [(*key, clips, f"{seconds / 3600:.4f}") for key, (clips, seconds) in listed]
    more = "\n\n... and more; see `origin` of each clip."
    more *= last is not None or len(found) > len(listed)
    head = (
        "# Licences by source\n\nEach clip carries the licence and attribution of its source in "
        "the column `origin`.\n\n"
    )
    return head + table(LICENCE_COLUMNS, lines) + more + "\n"


def _source(row: Mapping[str, Any]) -> tuple[str, str, str]:
    source = row["origin"]
    parents = (parent.partition("#")[0] for parent in source["parents"] or ())
    made_of = ", ".join(dict.fromkeys(map(clean_uri, [source["uri"], *parents])))
    return source["licence"] or NO_LICENCE, source["attribution"] or "", made_of
