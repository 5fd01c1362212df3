"""What latents depend on, as hashes, so that a store made by another model is told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def folder_hash(folder: Path) -> str:
    """sha256 over the weights and settings of one model component.

    Settings are compared as JSON without their private keys (versions, names), weights as bytes;
    code that is shipped beside them does not count.
    """
    digest = hashlib.sha256()
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".py")
    if not files:
        raise ValueError(f"{folder} is empty or absent; is this a model directory?")
    for file in files:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        if file.suffix == ".json":
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                text = "nested too deep" if isinstance(error, RecursionError) else error
                raise ValueError(f"{file} cannot be read: it is no JSON: {text}") from error
            if isinstance(content, dict):
                drop = {"transformers_version", "name_or_path", "model_max_length"}
                content = {
                    key: value
                    for key, value in content.items()
                    if not key.startswith("_") and key not in drop
                }
            digest.update(json.dumps(content, sort_keys=True).encode())
        else:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:32]


def model_fingerprint(model: str | Path) -> dict[str, str]:
    """Hashes of the components that latents depend on: `vae`, `text_encoder`, `tokenizer`."""
    folder = Path(model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder} is no model directory (no model_index.json); see layerflow init"
        )
    parts = ("vae", "text_encoder", "tokenizer")
    return {part: folder_hash(folder / part) for part in parts if (folder / part).is_dir()}


def fingerprint_differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """One line for each field of `want` in which `have` differs; empty when they fit."""
    return [
        f"{name}: {have.get(name)!r} there, {value!r} now"
        for name, value in sorted(want.items())
        if have.get(name) != value
    ]
