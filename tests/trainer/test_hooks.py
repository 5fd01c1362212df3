"""Hooks of a run, and a last stage that goes on with other data."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.train import TrainManifest
from tests.support import ROOT
from tests.support.foreign import dist_info
from tests.support.trainer_kit import Killed, kill_at, make_latents, make_manifest, same, weights
from trainer import loop, metrics
from trainer.planning.check import check
from trainer.recipe import hooks
from trainer.stages import Trained


def silent(line: str) -> None:
    pass


def base_only(folder: Path, **changes: Any) -> TrainManifest:
    manifest = make_manifest(folder, **changes)
    return manifest.model_copy(update={"stages": manifest.stages[:1]})


# ---- hooks ------------------------------------------------------------------------------------


def test_gradient_norms_of_parts_make_up_the_clipped_whole(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    manifest = base_only(tmp_path, hooks={"gradient-norms": {"every": 2}}, tensorboard=True)
    assert loop.train(manifest, manifest.out, log=silent)
    events = EventAccumulator(str(tmp_path / "out/tensorboard"))
    events.Reload()
    tags = [t for t in events.Tags()["scalars"] if t.startswith("gradient_norms/")]
    assert "gradient_norms/transformer_blocks.1" in tags and "gradient_norms/proj_out" in tags
    rows = {row["step"]: row for row in metrics.read(tmp_path / "out/metrics.csv")}
    for index, step in enumerate((2, 4)):
        parts = [events.Scalars(tag)[index] for tag in tags]
        assert {event.step for event in parts} == {step}
        whole = sum(event.value**2 for event in parts) ** 0.5
        assert whole == pytest.approx(min(1.0, rows[step]["grad_norm"]), rel=1e-4)


def test_the_hook_of_the_page_works_and_is_part_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/train.md").read_text().split("\n## Hooks\n")[1]
    (module,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:1]
    (tmp_path / "acme_hooks.py").write_text(module)
    dist_info(tmp_path, "acme-hooks", {"layerflow.hooks": {"acme-limit": "acme_hooks:Limit"}})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_hooks", raising=False)
    manifest = base_only(tmp_path / "kit", hooks={"acme-limit": {"most": 0.01}}, save_every=2)
    stage = manifest.stages[0].model_copy(update={"ema": None})
    manifest = manifest.model_copy(update={"stages": [stage]})
    for step in (2, 4):
        with pytest.raises(Killed):
            loop.train(manifest, manifest.out, log=silent, report=kill_at(step))
    assert loop.train(manifest, manifest.out, log=silent)
    made = weights(Path(manifest.out) / "export")
    assert max(float(tensor.abs().max()) for tensor in made.values()) == pytest.approx(0.01)
    whole = manifest.model_copy(update={"out": str(tmp_path / "whole")})
    assert loop.train(whole, whole.out, log=silent)
    assert same(made, weights(tmp_path / "whole/export"))
    record = json.loads((tmp_path / "whole/run.json").read_text())
    assert record["packages"] == {"acme-limit": "acme-hooks==1.0"}
    without = manifest.model_copy(update={"hooks": {}})
    with pytest.raises(ValueError, match=r"hooks\.acme-limit\.most: 0\.01 -> None"):
        loop.train(without, without.out, log=silent)


def test_hooks_that_are_not_there_or_take_other_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown hook 'gradient-norm'; did you mean"):
        check(base_only(tmp_path, hooks={"gradient-norm": {}}))
    with pytest.raises(ValueError, match="hook 'gradient-norms' has no often: leave it out"):
        check(base_only(tmp_path, hooks={"gradient-norms": {"often": 2}}))


def test_hooks_run_around_each_step_with_its_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Watch:
        def before(self, step: Any) -> None:
            seen.append(("before", step.number, step.at, step.trained.values.clone()))

        def after(self, step: Any) -> None:
            assert isinstance(step.trained, Trained)
            seen.append(("after", step.number, step.at, step.trained.grads.norm()))

    monkeypatch.setattr(hooks, "make_hooks", lambda manifest: [Watch()])
    manifest = make_manifest(tmp_path)
    assert loop.train(manifest, manifest.out, log=silent)
    assert [entry[:3] for entry in seen[:4]] == [
        ("before", 0, 1), ("after", 0, 1), ("before", 1, 2), ("after", 1, 2),
    ]  # fmt: skip
    assert seen[10][:3] == ("before", 0, 6)  # the second stage begins
    assert not torch.equal(seen[0][3], seen[2][3])
    rows = metrics.read(tmp_path / "out/metrics.csv")
    clipped = [min(1.0, row["grad_norm"]) for row in rows]
    assert [float(e[3]) for e in seen if e[0] == "after"] == pytest.approx(clipped, rel=1e-4)


# ---- other data in the last stage ------------------------------------------------------------


def with_data(manifest: TrainManifest, latents: str, **changes: Any) -> TrainManifest:
    """The last stage on other stills."""
    last = manifest.stages[-1]
    first = last.mixture[0].model_copy(update={"latents": latents})
    stages = [
        *manifest.stages[:-1],
        last.model_copy(update={"mixture": [first, *last.mixture[1:]]}),
    ]
    return manifest.model_copy(update={"stages": stages, **changes})


def test_the_last_stage_goes_on_with_other_data_when_asked_and_says_so(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, save_every=2)
    more = str(make_latents(tmp_path / "more", count=9, kind="image", frames=1, seed=5))
    other = with_data(manifest, more)
    with pytest.raises(Killed):
        loop.train(manifest, manifest.out, log=silent, report=kill_at(11))  # 2 of the last stage
    with pytest.raises(ValueError, match=r"or --new-data to go on with it\. What changed"):
        loop.train(other, other.out, log=silent)
    seeds = other.model_copy(update={"seed": 8})
    with pytest.raises(ValueError, match=r"start over\. What changed:\n  seed: 7 -> 8$"):
        loop.train(seeds, seeds.out, log=silent, new_data=True)
    said: list[str] = []
    with pytest.raises(Killed):  # and killed again: the change is recorded, and resumed exactly
        loop.train(
            other, other.out, log=said.append, new_data=True,
            report=kill_at(13),
        )  # fmt: skip
    assert any(line.startswith("content: other data from step 3 on") for line in said)
    record = json.loads((tmp_path / "out/run.json").read_text())
    (entry,) = record["data_changes"]
    assert entry["stage"] == "content" and entry["after_step"] == 2
    assert any("mixture[0].latents" in line for line in entry["changed"])
    assert loop.train(other, other.out, log=silent)  # no flag any more
    assert json.loads((tmp_path / "out/run.json").read_text())["data_changes"] == [entry]

    # by hand: the second half on the other stills, from the first half's checkpoint
    rows = [r["loss"] for r in metrics.read(tmp_path / "out/metrics.csv")]
    plain = manifest.model_copy(update={"out": str(tmp_path / "plain")})
    assert loop.train(plain, plain.out, log=silent)
    before = [r["loss"] for r in metrics.read(tmp_path / "plain/metrics.csv")]
    assert rows[:11] == before[:11] and rows[11] != before[11] and len(rows) == 13


def test_data_that_an_earlier_stage_has_seen_do_not_change(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, save_every=2)
    with pytest.raises(Killed):
        loop.train(manifest, manifest.out, log=silent, report=kill_at(11))
    make_latents(tmp_path / "video", count=11, seed=3)  # of all stages
    with pytest.raises(ValueError, match=r"latents\.video") as refused:
        loop.train(manifest, manifest.out, log=silent, new_data=True)
    assert "--new-data" not in str(refused.value)
