"""A mine job with a captioning endpoint and a LaMa file, from the command line to the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.table import Corpus
from tests.support.captions import GOOD, good_reply
from tests.support.inpainters import MeanOfTheRest
from tests.support.mined import green_screen


def test_captions_and_lama_reach_the_corpus_and_the_key_does_not(
    endpoint: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAYERFLOW_TEST_KEY", "sesame")
    server = endpoint(good_reply)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    green_screen(folder / "a.mp4", 0, frames=8)
    green_screen(folder / "b.mp4", 1, frames=8)
    (folder / "b.json").write_text('{"foreground": "a striped ball"}')
    torch.jit.script(MeanOfTheRest()).save(str(tmp_path / "lama.pt"))
    command = [
        "mine", str(folder), "--out", str(out), "--size", "96x128", "--frames", "8", "--fps", "10",
        "--matting", "chroma", "--gate", "off", "--workers", "0", "--quiet",
        "--inpaint", "lama", "--inpaint-weights", str(tmp_path / "lama.pt"),
        "--caption-url", server.url, "--caption-model", "vlm",
        "--caption-key-env", "LAYERFLOW_TEST_KEY",
    ]  # fmt: skip
    result = CliRunner().invoke(build_app(), command)
    assert result.exit_code == 0, result.output
    rows = {row["origin"]["uri"]: row for row in Corpus.open(out).rows()}
    assert [rows["a.mp4"][f"{layer}_prompt"] for layer in GOOD] == list(GOOD.values())
    assert rows["b.mp4"]["foreground_prompt"] == "a striped ball"
    assert rows["b.mp4"]["blended_prompt"] == GOOD["blended"]
    assert all(row["quality"]["prompt_flags"] == 0 for row in rows.values())
    assert all(row["background_kind"] == "inpainted" for row in rows.values())
    recorded = (out / "corpus.json").read_text()
    assert '"vlm"' in recorded and '"lama.pt"' in recorded
    for secret in ("sesame", server.url, str(tmp_path)):
        assert secret not in recorded and secret not in result.output.replace(str(out), "")
    monkeypatch.setenv("LAYERFLOW_TEST_KEY", "wrong")
    refused = CliRunner().invoke(build_app(), [*command[:3], str(tmp_path / "other"), *command[4:]])
    assert refused.exit_code != 0 and "refused the key" in str(refused.exception)
    assert not (tmp_path / "other").exists()
