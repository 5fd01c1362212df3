"""`layerflow doctor` reports what is there and fails on what is broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from layerflow.cli import doctor
from layerflow.cli.main import build_app


def test_this_machine_passes_and_every_needed_part_is_named() -> None:
    done = CliRunner().invoke(build_app(), ["doctor"])
    assert done.exit_code == 0, done.output
    for name in ("Python", "torch", "GPU", "libx264", "ffv1", "Ray", "this folder"):
        assert name in done.output


def test_a_check_that_breaks_is_a_finding_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def _opencv() -> Iterator[doctor.Finding]:
        raise ImportError("libGL.so.1: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (_opencv, doctor._codecs))
    done = CliRunner().invoke(build_app(), ["doctor"])
    assert done.exit_code == 1
    assert "bad  opencv                 ImportError: libGL.so.1" in done.output
    assert "libx264" in done.output


def test_a_missing_codec_that_corpora_need_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    monkeypatch.setattr(av, "codecs_available", {"ffv1", "prores_ks"})
    states = {found.what: found.state for found in doctor._codecs()}
    assert states == {"libx264": "bad", "ffv1": "ok", "prores_ks": "ok", "libvpx-vp9": "note"}
