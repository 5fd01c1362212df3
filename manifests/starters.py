"""Commented manifests to start from: templates filled in with what is there.

Numbers are those of the ready manifests: ``demo-train.yaml`` for networks of a few million
parameters, ``layerflow-2b-one-gpu.yaml`` for large ones. What is written has been parsed before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from manifests.common import check
from manifests.schema import BuildManifest
from manifests.train import parse
from manifests.yaml_file import parse_yaml

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*[A-Za-z0-9_/-]")
TEMPLATES = Path(__file__).parent / "templates"
SMALL_NETWORK = 50_000_000
"""Parameters below which a network is trained whole, from nothing, on a CPU."""

SIZES = {  # of a small network and of a large one
    "base_steps": ("2000", "4000"),
    "base_lr": ("3.0e-3", "5.0e-5"),
    "base_warmup": ("30", "500"),
    "base_trains": ("full", '{blocks: every 6, also: ["layer_embedding*"]}'),
    "motion_steps": ("200", "750"),
    "motion_lr": ("1.0e-2", "5.0e-4"),
    "motion_warmup": ("10", "50"),
    "motion_trains": (
        "{lora: motion, rank: 4, alpha: 4}",
        "{lora: motion, rank: 8, alpha: 1, blocks: every 6}",
    ),
    "content_steps": ("150", "1500"),
    "content_lr": ("8.0e-3", "2.0e-3"),
    "content_warmup": ("10", "100"),
    "content_trains": (
        "{lora: content, rank: 16, alpha: 16}",
        "{lora: content, rank: 256, alpha: 1, blocks: every 6}",
    ),
    "precision": ("fp32", "bf16"),
    "checkpointing": ("none", "full"),
    "micro": ("4", "1"),
    "save": ("500", "250"),
    "clip": ("1.0", "0.1"),
}


def train_manifest(
    model: str,
    out: str,
    latents: Mapping[str, tuple[str, Mapping[str, int]]],
    *,
    parameters: int,
    frames_per_latent: int = 1,
) -> str:
    """The text of a train manifest of base, motion and content stage.

    latents: name -> its folder and how many rows of each kind (``mined``, ``pasted``, ``image``) it
    holds. parameters: of the transformer. frames_per_latent: pixel frames of a latent frame; above
    1 a repeated latent frame is not quite a still clip, which a comment says. Without stills the
    content stage is left out and the reason stands there. Raises ValueError when no clip moves.
    """
    moving = [name for name, (_, kinds) in latents.items() if _moving(kinds)]
    stills = [name for name, (_, kinds) in latents.items() if kinds.get("image")]
    if not moving:
        raise ValueError("no mined or pasted clips in the latents: the base stage needs some")
    rows = sum(_moving(latents[name][1]) for name in moving)
    batch = max(1, min(8, rows))
    sizes = {name: pair[parameters >= SMALL_NETWORK] for name, pair in SIZES.items()}
    names = {
        **sizes,
        "model": _value(model),
        "out": _value(out),
        "parameters": f"{parameters / 1e6:,.2f} million parameters",
        "found": "; ".join(_found(name, kinds) for name, (_, kinds) in latents.items()),
        "batch": str(batch),
        "micro": next(m for m in (sizes["micro"], "2", "1") if batch % int(m) == 0),
        "latents": "\n".join(
            f"  {_value(name)}: {_value(folder)}" for name, (folder, _) in latents.items()
        ),
        "moving": _mixture(moving, "kinds: [mined, pasted]"),
        "frozen": _mixture(
            moving,
            "kinds: [mined, pasted], freeze: true, motion_gate: 1",
            "\n        # the autoencoder compresses time: stills of `encode --freeze 1` are truer"
            if frames_per_latent > 1
            else "",
        ),
        "stills": _mixture(stills, "kinds: [image], weight: 0.8, motion_gate: 1"),
        "mixed": _mixture(moving, "kinds: [mined, pasted], weight: 0.2"),
    }
    text = _filled("train", names) + _filled("base", names)
    if stills:
        text += _filled("content", names)
    else:
        text += "\n  # No stills in the latents: the content stage is left out. Pack some, encode "
        text += "them,\n  # and write this manifest again (docs: pack).\n"
    parse(parse_yaml(text, "the new manifest"))
    return text


def corpus_manifest(
    *,
    videos: Sequence[str] = (),
    cutouts: Sequence[str] = (),
    backgrounds: Sequence[str] = (),
    stills: Sequence[str] = (),
    out: str,
    size: str,
    frames: int,
    fps: float,
    count: int,
) -> str:
    """The text of a corpus manifest with a job for what is there: mine for videos; paste for
    cut-outs or mined clips over backgrounds; pack for layered stills.

    Raises ValueError when there is nothing to do.
    """
    mined = f"{out}/mined"
    foregrounds = [*cutouts, *([mined] if videos else [])]
    jobs = {"mine": bool(videos), "paste": bool(foregrounds and backgrounds), "pack": bool(stills)}
    if not any(jobs.values()):
        raise ValueError("name what is there: --videos, --cutouts with --backgrounds, or --stills")
    names = {
        "videos": _value(list(videos)),
        "foregrounds": _value(foregrounds),
        "backgrounds": _value(list(backgrounds)),
        "stills": _value(list(stills)),
        "mined": _value(mined),
        "pasted": _value(f"{out}/pasted"),
        "packed": _value(f"{out}/stills"),
        "size": size,
        "frames": str(frames),
        "fps": f"{fps:g}",
        "count": str(count),
    }
    text = _filled("corpus", names)
    text += "\n".join(_filled(job, names) for job, wanted in jobs.items() if wanted)
    check(parse_yaml(text, "the new manifest"), BuildManifest, "the new manifest")
    return text


def _filled(template: str, names: Mapping[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.yaml").read_text()).substitute(names)


def _value(value: str | list[str]) -> str:
    """As YAML on one line: quoted as JSON, which YAML reads, unless it is plainly a name."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    plain = _PLAIN.fullmatch(value) and parse_yaml(value, "") == value
    return value if plain else json.dumps(value)


def _moving(kinds: Mapping[str, int]) -> int:
    return kinds.get("mined", 0) + kinds.get("pasted", 0)


def _found(name: str, kinds: Mapping[str, int]) -> str:
    return f"{_value(name)} has " + ", ".join(
        f"{count} {kind}" for kind, count in sorted(kinds.items())
    )


def _mixture(names: Sequence[str], which: str, comment: str = "") -> str:
    """A component of a stage's mixture for each of some latents."""
    return "\n".join(f"      - {{latents: {_value(n)}, {which}}}{comment}" for n in names)
