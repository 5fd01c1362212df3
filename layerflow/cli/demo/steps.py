"""The demo's steps, in order, through the same functions that the commands call.

OUT/media/      drawn: videos, videos-truth, cut-outs, backgrounds, layered stills
OUT/corpora/    mined, pasted, held-out, neutral, stills
OUT/latents/    video (mined and pasted), neutral, stills
OUT/model/      the tiny model that training starts from
OUT/train/      the run: metrics, checkpoints, an export after each stage
OUT/samples/    the four tasks
OUT/demo.json, OUT/report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerflow import front
from layerflow.outputs import local_output

if TYPE_CHECKING:
    from manifests.demo import DemoManifest
    from manifests.mine import MineOptions
    from manifests.pack import PackOptions
    from manifests.paste import PasteOptions
    from manifests.train import TrainManifest
    from pipelines.engine.jobs import Summary

HELD_OUT = 1000  # added to the seed for everything that training must not see


@dataclass
class Demo:
    """One run of the demo: what was asked for, where it goes, how long its steps took."""

    manifest: DemoManifest
    beside: Path
    """The demo manifest's folder; the train manifest lies there too."""
    out: Path
    videos: Path | None = None
    workers: int | None = None
    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

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
        """Time a step and say that it runs."""
        print(f"demo: {name} ...", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        print(f"demo: {name} took {self.seconds[name]:.1f} s", flush=True)

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

        backgrounds = "backgrounds-held-out" if name == "held-out" else "backgrounds"
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
        return load(
            path,
            model=str(self.model),
            out=str(self.out / "train"),
            latents=latents,
            keep_exports=True,
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
    from layerflow.cli.demo.measure import measure, sample_tasks
    from layerflow.cli.demo.memory import PeakMemory
    from pipelines.engine.cluster import stop_ray

    demo.check()
    demo.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with PeakMemory() as memory:
        with demo.step("draw media"):
            draw_media(demo)
        jobs = run_jobs(demo)
        with demo.step("encode"):
            encode(demo)
        stop_ray()  # its processes and memory are not needed any more
        with demo.step("train"):
            train(demo)
        with demo.step("sample"):
            sample_tasks(demo)
        with demo.step("measure"):
            result = measure(demo)
    result["jobs"] = {name: _plain(summary) for name, summary in jobs.items()}
    result["seconds"] = {**demo.seconds, "all": time.monotonic() - started}
    result["peak_gib"] = memory.peak / 2**30
    (demo.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
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
        for name, cutouts in (("foregrounds", media.foregrounds), ("neutral", media.neutral)):
            count = cutouts.held_out if held_out else cutouts.count
            rest = cutouts.model_dump(include={"size", "look"})
            procedural.make_stills(demo.media(name + end), count=count, seed=own_seed, **rest)
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


def run_jobs(demo: Demo) -> dict[str, Summary]:
    """Mine, paste, pack. ValueError when a job leaves no clips to go on with."""
    how: dict[str, Any] = {"workers": demo.workers, "quiet": demo.quiet}
    counts = demo.manifest.counts
    jobs: dict[str, Summary] = {}
    with demo.step("mine"):
        jobs["mined"] = front.run_job(demo.mine, **how)
    sources = [demo.media("foregrounds")]
    if jobs["mined"].kept:
        sources.append(demo.corpus("mined"))
    with demo.step("paste"):
        for name, count, seed, foregrounds in (
            ("pasted", counts.training, 0, sources),
            ("held-out", counts.held_out, HELD_OUT, [demo.media("foregrounds-held-out")]),
            ("neutral", counts.neutral, 1, [demo.media("neutral")]),
        ):
            jobs[name] = front.run_job(demo.paste(name, count, seed, *foregrounds), **how)
    with demo.step("pack"):
        jobs["stills"] = front.run_job(demo.pack, **how)
    for name, summary in jobs.items():
        if summary.kept == 0 and name != "mined":
            raise ValueError(f"{demo.corpus(name)}: no clips; reasons: {summary.reasons}")
    return jobs


def encode(demo: Demo) -> None:
    """A model to start from, and the latents of all training clips."""
    from layerflow.corpus.table import Corpus
    from layerflow.model.presets import init_directory

    said = demo.manifest.encode
    if not demo.model.exists():
        height, width = said.size
        more: dict[str, Any] = {"num_frames": said.frames, **demo.manifest.model}
        init_directory(demo.model, "tiny", height=height, width=width, **more)
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
    """The three stages of the train manifest, in this process."""
    from trainer.distributed.launch import launch

    if not launch(demo.train, log=lambda line: print(f"  {line}", flush=True)):
        raise ValueError("training was stopped before the end; the same command goes on from here")
