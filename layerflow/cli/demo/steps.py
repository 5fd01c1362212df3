"""The demo's steps, in order, through the same functions that the commands call.

OUT/media/      drawn: videos, videos-truth, cut-outs, backgrounds, layered stills
OUT/corpora/    mined, pasted, held-out, held-out-new, neutral, stills
OUT/latents/    video (mined and pasted), neutral, stills
OUT/model/      the tiny model that training starts from
OUT/train/      the run: metrics, checkpoints, an export after each stage
OUT/samples/    the four tasks
OUT/sheets/     contact sheets of what the stages make, and of the corpora
OUT/demo.json, OUT/report.html, which grows with every step
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from layerflow import front
from layerflow.cli.demo.memory import PeakMemory, tree_cpu
from layerflow.outputs import local_output

if TYPE_CHECKING:
    from manifests.demo import DemoManifest
    from manifests.mine import MineOptions
    from manifests.pack import PackOptions
    from manifests.paste import PasteOptions
    from manifests.train import TrainManifest
    from pipelines.engine.jobs import Summary

HELD_OUT = 1000  # added to the seed for everything that training must not see
SHOW_SECONDS = 10.0  # between two pages while it trains


@dataclass
class Demo:
    """One run of the demo: what was asked for, where it goes, and what it has given so far."""

    manifest: DemoManifest
    beside: Path
    """The demo manifest's folder; the train manifest lies there too."""
    out: Path
    videos: Path | None = None
    workers: int | None = None
    quiet: bool = False
    show: Callable[[dict[str, Any]], object] = lambda result: None
    """Called with `result` whenever there is more to show."""
    result: dict[str, Any] = field(default_factory=lambda: {"seconds": {}, "cpu_seconds": {}})
    """What was measured; keys come as the steps are done. `running`: the step at work."""

    new: ClassVar[str] = "held-out-new"
    """Corpus of moving clips with the look of the stills, which no training saw move."""

    def media(self, name: str) -> Path:
        return self.out / "media" / name

    def corpus(self, name: str) -> Path:
        return self.out / "corpora" / name

    def latents(self, name: str) -> Path:
        return self.out / "latents" / name

    @property
    def model(self) -> Path:
        return self.out / "model"

    @property
    def export(self) -> Path:
        """The pipeline with all stages."""
        return self.out / "train" / "export"

    def stage_export(self, stage: str) -> Path:
        """The pipeline as it was after a stage."""
        return self.out / "train" / "stages" / stage / "export"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, say that it runs, and show what there is before and after it."""
        print(f"demo: {name} ...", flush=True)
        self.result["running"] = name
        self.show(self.result)
        started, cpu = time.monotonic(), tree_cpu()
        yield
        del self.result["running"]
        self.result["seconds"][name] = time.monotonic() - started
        self.result["cpu_seconds"][name] = max(0.0, tree_cpu() - cpu)
        print(f"demo: {name} took {self.result['seconds'][name]:.1f} s", flush=True)
        self.show(self.result)

    @cached_property
    def mine(self) -> MineOptions:
        from manifests.common import check
        from manifests.mine import MineOptions

        inputs = [str(self.videos or self.media("videos"))]
        said = {**self.manifest.mine, "inputs": inputs, "out": str(self.corpus("mined"))}
        return check(said, MineOptions, "demo manifest: mine")

    def paste(self, name: str, count: int, seed: int, *foregrounds: Path) -> PasteOptions:
        """Options of one paste job; the held-out one has its own backgrounds."""
        from manifests.common import check
        from manifests.paste import PasteOptions

        backgrounds = "backgrounds-held-out" if name.startswith("held-out") else "backgrounds"
        said = {
            **self.manifest.paste,
            "foregrounds": [str(path) for path in foregrounds],
            "backgrounds": [str(self.media(backgrounds))],
            "out": str(self.corpus(name)),
            "count": count,
            "seed": self.manifest.seed + seed,
        }
        return check(said, PasteOptions, "demo manifest: paste")

    @cached_property
    def pack(self) -> PackOptions:
        from manifests.common import check
        from manifests.pack import PackOptions

        said = {
            **self.manifest.pack,
            "inputs": [str(self.media("stills"))],
            "out": str(self.corpus("stills")),
        }
        return check(said, PackOptions, "demo manifest: pack")

    @cached_property
    def train(self) -> TrainManifest:
        """The train manifest with this run's folders."""
        from manifests.train import load

        path = self.beside / self.manifest.train
        said = load(path)
        latents = {name: str(self.latents(name)) for name in said.latents}
        times = self.manifest.train_steps
        return load(
            path,
            model=str(self.model),
            out=str(self.out / "train"),
            seed=said.seed + self.manifest.seed,
            latents=latents,
            keep_exports=True,
            stages=[
                stage.model_dump(mode="json") | {"steps": max(1, round(stage.steps * times))}
                for stage in said.stages
            ],
        )

    def check(self) -> None:
        """Check all options before any work."""
        local_output(self.out)
        _ = self.mine, self.pack, self.train
        self.paste("pasted", 1, 0, self.media("foregrounds"))
        if self.videos is not None and not self.videos.exists():
            raise ValueError(f"{self.videos}: no such file or folder")


def run_demo(demo: Demo) -> dict[str, Any]:
    """All steps. Returns what was measured, which is also in ``OUT/demo.json``."""
    demo.check()
    demo.out.mkdir(parents=True, exist_ok=True)
    started, cpu = time.monotonic(), tree_cpu()
    with PeakMemory() as memory:
        for name, work in STEPS.items():
            with demo.step(name):
                work(demo)
    result = demo.result
    result["seconds"]["all"] = time.monotonic() - started
    result["cpu_seconds"]["all"] = tree_cpu() - cpu
    result["peak_gib"] = memory.peak / 2**30
    (demo.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    demo.show(result)
    return result


def _plain(summary: Summary) -> dict[str, Any]:
    return {
        "kept": summary.kept,
        "rejected": summary.rejected,
        "reasons": dict(sorted(summary.reasons.items(), key=lambda item: -item[1])),
    }


def draw_media(demo: Demo) -> None:
    """Draw all media, unless this very set is there already."""
    from pipelines.procedural import media as procedural

    media, seed = demo.manifest.media, demo.manifest.seed
    done = demo.out / "media" / "media.json"
    said = json.dumps([media.model_dump(mode="json"), seed], sort_keys=True)
    if done.is_file() and done.read_text() == said:
        return
    if demo.videos is None:
        height, width = media.videos.size
        rest = media.videos.model_dump(exclude={"size"})
        procedural.make_videos(demo.media("videos"), seed=seed, height=height, width=width, **rest)
    backs = media.backgrounds
    for held_out, end in ((False, ""), (True, "-held-out")):
        own_seed = seed + HELD_OUT * held_out
        cutouts = media.foregrounds
        looks = {"foregrounds": cutouts.look, "neutral": media.neutral.look}
        if held_out:
            looks = {"foregrounds": cutouts.look, "new": media.stills.look}
        for name, look in looks.items():
            drawn = media.neutral if name == "neutral" else cutouts
            count = drawn.held_out if held_out else drawn.count
            procedural.make_stills(
                demo.media(name + end), count=count, seed=own_seed, size=drawn.size, look=look
            )
        procedural.make_backgrounds(
            demo.media(f"backgrounds{end}"),
            count=backs.held_out if held_out else backs.count,
            seed=own_seed,
            height=backs.size,
            width=backs.size,
            chroma=backs.chroma,
            detail=backs.detail,
        )
    procedural.make_layered_stills(
        demo.media("stills"), seed=seed, chroma=backs.chroma, **media.stills.model_dump()
    )
    done.write_text(said)


def mine(demo: Demo) -> None:
    from layerflow.cli.demo.measure import matte_ious

    run_job(demo, "mined", demo.mine, empty=True)
    demo.result["mattes"] = matte_ious(demo)


def paste(demo: Demo) -> None:
    """Training clips from drawn and mined subjects, and held-out ones of both looks."""
    from layerflow.corpus.table import Corpus

    counts, sources = demo.manifest.counts, [demo.media("foregrounds")]
    if len(Corpus.open(demo.corpus("mined"))):
        sources.append(demo.corpus("mined"))
    for name, count, seed, foregrounds in (
        ("pasted", counts.training, 0, sources),
        ("held-out", counts.held_out, HELD_OUT, [demo.media("foregrounds-held-out")]),
        (demo.new, counts.held_out, HELD_OUT, [demo.media("new-held-out")]),
        ("neutral", counts.neutral, 1, [demo.media("neutral")]),
    ):
        run_job(demo, name, demo.paste(name, count, seed, *foregrounds))


def pack(demo: Demo) -> None:
    run_job(demo, "stills", demo.pack)


def run_job(demo: Demo, name: str, options: Any, *, empty: bool = False) -> None:
    """One corpus job. ValueError when it leaves no clips to go on with, unless that may be."""
    summary = front.run_job(options, workers=demo.workers, quiet=demo.quiet)
    demo.result.setdefault("jobs", {})[name] = _plain(summary)
    if summary.kept == 0 and not empty:
        raise ValueError(f"{demo.corpus(name)}: no clips; reasons: {summary.reasons}")
    demo.show(demo.result)


def encode(demo: Demo) -> None:
    """A model to start from, and the latents of all training clips."""
    from layerflow.corpus.table import Corpus
    from layerflow.model.presets import init_directory

    said = demo.manifest.encode
    if not demo.model.exists():
        height, width = said.size
        more: dict[str, Any] = {"num_frames": said.frames, **demo.manifest.model}
        init_directory(demo.model, demo.manifest.preset, height=height, width=width, **more)
    video = [name for name in ("mined", "pasted") if len(Corpus.open(demo.corpus(name)))]
    for latents, corpora in (("video", video), ("neutral", ["neutral"]), ("stills", ["stills"])):
        front.encode(
            [demo.corpus(name) for name in corpora],
            demo.model,
            demo.latents(latents),
            **said.model_dump(),
            dtype="float16",
            workers=demo.workers,
            quiet=demo.quiet,
        )


def train(demo: Demo) -> None:
    """All stages of the train manifest; the curves are shown as they grow."""
    from layerflow.cli.demo.measure import stage_losses
    from pipelines.engine.cluster import stop_ray
    from trainer.distributed.launch import launch

    stop_ray()  # the jobs' processes and memory are not needed any more
    shown = time.monotonic()

    def log(line: str) -> None:
        nonlocal shown
        print(f"  {line}", flush=True)
        if time.monotonic() - shown > SHOW_SECONDS:
            shown = time.monotonic()
            demo.show(demo.result | {"losses": stage_losses(demo)})

    if not launch(demo.train, log=log):
        raise ValueError("training was stopped before the end; the same command goes on from here")
    demo.result["losses"] = stage_losses(demo)


def sample(demo: Demo) -> None:
    from layerflow.cli.demo.measure import sample_tasks

    sample_tasks(demo)
    demo.result["sampled"] = True


def measure(demo: Demo) -> None:
    from layerflow.cli.demo import measure as measures

    for key, find in measures.MEASURES.items():
        demo.result[key] = find(demo)
        demo.show(demo.result)


STEPS: dict[str, Callable[[Demo], None]] = {
    "draw media": draw_media,
    "mine": mine,
    "paste": paste,
    "pack": pack,
    "encode": encode,
    "train": train,
    "sample": sample,
    "measure": measure,
}
"""What the demo does, in this order."""
