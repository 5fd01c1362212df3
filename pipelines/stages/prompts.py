"""Prompts of mined clips: from a sidecar, from a table, or from a template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerflow.clip import PROMPTED
from pipelines.stages.listing import read_rows

TEMPLATE = {
    "foreground": "the moving subject, cut out",
    "background": "the scene without the subject",
    "blended": "the subject moving in the scene",
}
MAX_SIDECAR_BYTES = 1 << 20
MAX_PROMPT_CHARS = 2000
Table = Mapping[str, Mapping[str, str]]


def sidecar_prompts(path: Path) -> dict[str, str] | None:
    """Prompts beside a file: ``clip.json`` with a key per layer, or ``clip.txt`` (blended).

    None when there is no sidecar. Raises ValueError for one that cannot be used.
    """
    structured, plain = path.with_suffix(".json"), path.with_suffix(".txt")
    for sidecar in (structured, plain):
        if sidecar.is_file() and sidecar.stat().st_size > MAX_SIDECAR_BYTES:
            raise ValueError(f"{sidecar.name}: over {MAX_SIDECAR_BYTES} bytes")
    if structured.is_file():
        try:
            content = json.loads(structured.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{structured.name}: not valid JSON: {error}") from error
        return _checked(content, structured.name)
    if plain.is_file():
        text = plain.read_text(encoding="utf-8", errors="replace").strip()
        return {**TEMPLATE, "blended": text[:MAX_PROMPT_CHARS]} if text else None
    return None


def _checked(content: Any, where: str) -> dict[str, str]:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected an object with the keys {PROMPTED}")
    prompts = dict(TEMPLATE)
    for layer in PROMPTED:
        value = content.get(layer, content.get(f"{layer}_prompt"))
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{where}: {layer} must be text, not {type(value).__name__}")
        prompts[layer] = " ".join(value.split())[:MAX_PROMPT_CHARS]
    return prompts


def read_prompt_table(path: Path) -> dict[str, dict[str, str]]:
    """A CSV, JSONL or Parquet table with a ``video`` column and one column per prompted layer.

    Keys are the video column as written (a uri below the input folder, or a file name).
    Raises ValueError that names the file and, where it can, the line.
    """
    table: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_rows(path), 1):
        if not isinstance(row, Mapping) or not isinstance(row.get("video"), str):
            raise ValueError(f"{path}: row {number} has no video column")
        given = {k: v for k, v in row.items() if v is not None}
        table[row["video"]] = _checked(given, f"{path.name} row {number}")
    return table


def prompts_for(path: Path, uri: str, table: Table | None = None) -> tuple[dict[str, str], str]:
    """Prompts of one source and where they came from: ``table``, ``sidecar`` or ``template``."""
    if table is not None:
        for key in (uri, Path(uri).name, Path(uri).stem):
            if key in table:
                return dict(table[key]), "table"
    beside = sidecar_prompts(path)
    return (beside, "sidecar") if beside else (dict(TEMPLATE), "template")
