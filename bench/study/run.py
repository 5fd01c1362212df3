"""The study: what each part of the method is worth, on clips of real subjects over real films.

    python -m bench.study.run --media FOLDER [--study FILE] [--seeds 0 1 2] [--arms base method ...]
                              [--out build/study] [--results FOLDER] [--shorten N] [--workers N]

Clips of 8 frames of 64x64 are drawn from the cut-outs and films that `study.yaml` names below
FOLDER, some sources held out whole. A network of 4 M parameters is trained from nothing in each arm
(`arms.py`), for each seed. Clips that it has not seen measure it (`clips.PARTS`), together with
baselines that need no learning and with the mattes of the miner. Each arm is resumed where it was,
and those that are done are not done again. Figures go to RESULTS (else OUT/results), a file an arm
and a seed, which are all that another machine needs to go on; `python -m bench.study.page` makes a
page of them. It runs in as many processes as ``--workers`` says, one core each; the same command
may be started more than once, also later: each takes an arm that nobody else has.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from bench.study import clips, measure
from bench.study.arms import ARMS, lineage, manifest
from bench.study.baselines import baselines
from bench.study.results import Results
from layerflow.documents import read_json
from layerflow.files import write_json
from layerflow.model.presets import init_directory
from trainer.distributed.launch import launch

PAUSE_SECONDS = 5.0
STUDY = Path(__file__).with_name("study.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", type=Path, required=True, help="folder of the study's files")
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("build/study"))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--shorten", type=int, default=1, help="divide counts and steps: to try it")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=work, args=(options,)) for _ in range(options.workers - 1)]
    for process in others:
        process.start()
    print(table(work(options)))
    for process in others:
        process.join()


def work(options: argparse.Namespace) -> Results:
    """Do the arms that are not done and that no other process has, until all are done."""
    torch.set_num_threads(1)
    study = shortened(yaml.safe_load(options.study.read_text()), options.shorten)
    results = Results(options.results or options.out / "results", study)
    with alone(options.out / "prepare.lock"):
        clips.prepare(options.out, options.media, study)
        if not results.has("baselines"):
            results.put("baselines", baselines(options.out, study))
    wanted = [(seed, arm) for seed in options.seeds for arm in options.arms]
    while left := [(seed, arm) for seed, arm in wanted if not results.has(arm, seed)]:
        for seed, arm in left:
            with alone(options.out / f"seed-{seed}" / f"{arm}.measured.lock", wait=False) as mine:
                if mine:
                    measure_arm(options.out, arm, seed, study, results)
        time.sleep(PAUSE_SECONDS)  # others may still be at some of them
    return results


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Within the block no other process is in a block of this file: whether that is so, where not
    to wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def shortened(study: dict[str, Any], times: int) -> dict[str, Any]:
    """The study with counts and steps divided, and all that follows from them."""
    for numbers in (study["clips"]["counts"], study["train"]):
        numbers.update({k: max(4, v // times) for k, v in numbers.items() if k != "batch"})
    return study


def measure_arm(out: Path, arm: str, seed: int, study: Mapping[str, Any], results: Results) -> None:
    """Train and measure one arm, unless that is done."""
    if results.has(arm, seed):
        return
    folder = out / f"seed-{seed}" / arm
    seconds = train_arm(out, arm, seed, study)
    found = measure.of_export(
        folder / "export",
        measure.measured(out),
        study["measure"],
        folder / "sheets",
        gated="motion" in lineage(arm),
    )
    found |= {"losses": measure.losses(folder), "cpu_seconds": seconds}
    results.put(arm, found, seed)


def train_arm(out: Path, arm: str, seed: int, study: Mapping[str, Any]) -> float:
    """Train one arm, and what it starts from, as far as that is not done; the CPU seconds of it."""
    with alone(out / f"seed-{seed}" / f"{arm}.lock"):
        return _train_arm(out, arm, seed, study)


def _train_arm(out: Path, arm: str, seed: int, study: Mapping[str, Any]) -> float:
    folder = out / f"seed-{seed}" / arm
    if ARMS[arm].after:
        train_arm(out, str(ARMS[arm].after), seed, study)
    elif not (folder / "start").is_dir():
        start(folder / "start", arm, seed, study["model"], out / "autoencoder")
    say = lambda text: print(f"seed {seed} {arm}: {text}", flush=True)  # noqa: E731
    spent = folder / "cpu.json"
    earlier = float(read_json(spent)["seconds"]) if spent.is_file() else 0.0
    before = time.process_time()
    try:
        if not launch(manifest(arm, out, seed, study), log=say):
            raise SystemExit(143)
    finally:  # a run that was stopped goes on, also with this
        seconds = earlier + time.process_time() - before
        write_json(spent, {"seconds": seconds})
    return seconds


def start(folder: Path, arm: str, seed: int, options: Mapping[str, Any], coded: Path) -> None:
    """The network that an arm starts from; of one seed all are equal, but for what the arm says.

    coded: the model that coded the latents, whose text encoder all seeds share.
    """
    init_directory(folder, "tiny-wan", **{**options, **ARMS[arm].model, "seed": seed})
    shutil.copytree(coded / "text_encoder", folder / "text_encoder", dirs_exist_ok=True)
    if not ARMS[arm].zeroed:
        return
    from layerflow.model.sample import load_pipeline

    network = load_pipeline(folder).transformer
    with torch.no_grad():
        for name in ARMS[arm].zeroed:
            network.get_parameter(name).zero_()
    network.save_pretrained(folder / "transformer")


def table(results: Results) -> str:
    """The arms that are done, in three figures."""
    shown = ("decompose.fresh.iou", "decompose.fresh_soft.edge_mad", "generate.drift")
    lines = [f"{'':20}" + " ".join(f"{name:>34}" for name in shown)]
    for arm, figures in results.arms().items():
        lines.append(f"{arm:20}" + " ".join(f"{spread(figures[name]):>34}" for name in shown))
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}, {len(values)})"


if __name__ == "__main__":
    main()
