"""The demo in a minute: the manifests that come with it, with few clips and steps."""

from __future__ import annotations

from pathlib import Path

import yaml


def write_small_demo(manifests: Path, folder: Path) -> Path:
    """Writes both manifests into ``folder``; returns the demo's. manifests: where theirs are."""
    content = yaml.safe_load((manifests / "demo.yaml").read_text())
    media = content["media"]
    media["videos"] |= {"count": 2, "families": ["moving", "still"]}
    for name in ("foregrounds", "backgrounds"):
        media[name] |= {"count": 6, "held_out": 6}
    media["neutral"]["count"] = media["stills"]["count"] = 6
    content["counts"] = {"training": 24, "held_out": 8, "neutral": 8}
    content["measure"] |= {"tuning_clips": 8, "drift_clips": 4, "generate_steps": 2}
    training = yaml.safe_load((manifests / "demo-train.yaml").read_text())
    training |= {"workers": 1, "save_every": 100}
    for stage in training["stages"]:
        stage["steps"] = 3
    (folder / "demo.yaml").write_text(yaml.safe_dump(content))
    (folder / "demo-train.yaml").write_text(yaml.safe_dump(training))
    return folder / "demo.yaml"
