"""The training loop, in plain torch: one process, `torchrun`, or inside Ray Train, unchanged.

    python -m trainer.loop MANIFEST --out OUT
    torchrun --nproc-per-node 2 -m trainer.loop MANIFEST --out OUT

What a step is: the global batch of the stage is split over the ranks; each sample's loss is the
mean over its generated elements (those that are known, where the stage says `mask: known`); the
step's loss is the mean over the samples. All randomness is a function of (seed, draw), see
`trainer.order`, so nothing of it is saved or restored.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from layerflow.layer_set import model_layers
from layerflow.model.base import base_of
from layerflow.model.objective import layer_loss
from manifests.train import TrainManifest, load
from manifests.train_stage import Stage
from trainer import checkpoint, validation
from trainer.checkpoint import Position
from trainer.claim import claim
from trainer.data import Batches, buckets, buckets_text, open_parts
from trainer.distributed.processes import join_world, until_terminated
from trainer.distributed.signals import Signals, give_up, skips
from trainer.export import export, load_network, model_after
from trainer.held_out import held_out
from trainer.memory.hold import hold
from trainer.metrics import line, make_metrics
from trainer.order import Order
from trainer.planning.budget import budget_order, step_sizes
from trainer.planning.check import check
from trainer.recipe.hooks import Hooks
from trainer.recipe.patience import Patience
from trainer.recipe.terms import drawn_times, stage_terms
from trainer.runtime import Run, attention_kernel, autocast, prepare
from trainer.sampling import SampleJob, run_job
from trainer.stages import attach, lay_out, learning_rate
from trainer.tracking.state import run_state
from trainer.upload import uploading
from trainer.workplace import with_model_here, workplace

Log = Callable[[str], None]


def train(
    manifest: TrainManifest,
    out: str | Path,
    *,
    only: str | None = None,
    fresh: bool = False,
    new_data: bool = False,
    log: Log = print,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    sample: Callable[[SampleJob], None] = run_job,
    stop: threading.Event | None = None,
) -> bool:
    """Train the manifest's stages into `out`, from wherever an earlier call left off.

    only: train this stage and no other. fresh: start over. new_data: the last stage may go on with
    other data. report: called on every rank after each checkpoint. sample: called on rank 0 with
    clips to sample. stop: when set, or on SIGTERM, it saves, ends early and returns False.
    ValueError when `out` belongs to another run, or `only` needs a stage that is not done.
    """
    with (
        join_world(manifest) as world,
        workplace(manifest, out, world) as place,
        until_terminated(stop) as terminated,
        attention_kernel(manifest, world.device, world.log(log)),  # backward may recompute
        uploading(place.out, place.upload, log) as uploader,
        checkpoint.writing(manifest) as behind,
        run_state(place.out) as state,
    ):
        manifest = place.manifest

        def opens() -> None:
            check(manifest)
            claim(place.out, manifest, fresh=fresh, new_data=new_data, log=log)
            state.begin()

        out = place.share(opens)
        transformer, scheduler = load_network(manifest, world)
        hold(transformer, manifest, manifest.stages, world.device)
        run = Run(
            manifest=manifest,
            out=out,
            world=world,
            transformer=prepare(transformer, manifest, world),
            process=base_of(transformer).noise(scheduler),
            held_out=held_out(manifest),
            terminated=terminated,
            log=world.log(log),
            report=report,
            sample=sample,
            uploader=uploader,
            behind=behind,
        )
        if only is not None:
            manifest.stage(only)  # raises for a name that is not there
        for stage in manifest.stages:
            attach(run.transformer, stage, manifest.seed)
            if checkpoint.stage_steps(out, stage.name) >= stage.steps:
                checkpoint.load_stage(out, stage.name, run.transformer)
                run.log(f"{stage.name}: done before, {stage.steps} steps")
            elif only is not None and stage.name != only:
                raise ValueError(f"stage {only!r} needs stage {stage.name!r}, which is not done")
            elif not train_stage(run, stage):
                return False
            if stage.name == only:
                break
    return True


def make_batches(run: Run, stage: Stage) -> Batches:
    """The stage's batches for this rank. ValueError for what does not fit the manifest."""
    manifest, parts = run.manifest, open_parts(run.manifest, stage)
    layers = model_layers(manifest.model)
    dropout = stage.dropout or manifest.dropout
    order = Order(
        seed=manifest.seed,
        stage=stage.name,
        batch=stage.batch or manifest.batch,
        sizes=[len(part.rows) for part in parts],
        weights=[component.weight for component in stage.mixture],
        tasks=stage.tasks,
        joint=dropout.joint,
        layer=dropout.layer,
        **drawn_times(run.process, stage),
        prompts=len(layers.prompted),
    )
    sizes = step_sizes(stage, parts, run.transformer) if stage.tokens is not None else None
    share = run.world.sharing(manifest.context_parallel)
    return Batches(
        parts,
        order if sizes is None else budget_order(order, parts, sizes),
        rank=share.rank,
        world=share.size,
        accumulate=manifest.passes(stage, share.size),
        uneven=manifest.min_workers is not None,
        alike=stage.parallel == "fsdp",
        masked=stage.mask == "known",
        layers=layers,
    )


def train_stage(run: Run, stage: Stage) -> bool:
    """Train one stage, from its newest checkpoint if it has one; False when told to stop."""
    manifest, world, transformer = run.manifest, run.world, run.transformer
    batches, first_step = make_batches(run, stage), manifest.steps_before(stage)
    options = stage.optimizer or manifest.optimizer
    how: dict[str, Any] = {"bf16": manifest.precision == "bf16", "kind": options.kind}
    how |= {"shards": (manifest.shard_over, manifest.reshard_after_forward)}
    hold(transformer, manifest, manifest.stages_from(stage), world.device)
    trained = lay_out(transformer, stage, world, early=manifest.reduce == "overlapped", **how)
    optimizer = trained.optimizer(options)
    trains = sum(parameter.numel() for parameter in trained.parameters.values())
    shapes = buckets_text(buckets(batches.parts))
    run.log(f"{stage.name}: trains {trains / 1e6:.3f} M parameters; latent shapes {shapes}")
    before = validation.at_gate_0(run, stage)
    position = checkpoint.restore(run.out, stage.name, trained, optimizer) or Position()
    if begin := position.step:
        run.log(checkpoint.restored(run.out, stage, trained))
    skipped = torch.tensor(float(position.skipped), device=world.device)
    in_a_row = torch.tensor(float(position.in_a_row), device=world.device)
    most_skips = min(manifest.max_skips, stage.steps)
    terms = stage_terms(manifest, stage, world.device)
    signals = Signals(world, run.terminated, manifest.save_minutes)
    metrics = make_metrics(run, trained, first_step + begin)
    stream = batches.stream(begin, stage.steps, manifest.prefetch)
    hooks = Hooks(run, stage, trained, metrics, first_step)
    patience = Patience(stage, manifest.validation, position)
    stopped, done = False, begin

    for step in range(begin, begin if patience.over else stage.steps):
        clock = time.perf_counter()
        prepared = next(stream)
        waited = time.perf_counter() - clock

        hooks.before(step)
        trained.zero_grad(len(prepared))
        for batch in (batch.to(world.device) for batch in prepared):
            with autocast(manifest, world.device):
                losses = layer_loss(
                    transformer,
                    run.process,
                    *batch.tensors(),
                    layers=batch.layers,
                    known=batch.known,
                    terms=terms,
                )
            loss = losses.sum() / batches.order.samples(step)
            loss.backward()
            trained.loss += loss.detach()
        signals.send(trained)  # they travel with the gradients
        trained.reduce(world)

        norm = trained.clip(options.clip)
        bad = (~norm.isfinite()).float()  # such a step changes nothing, and is counted
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        rate = learning_rate(stage, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        optimizer.step()
        trained.update_average(bad, step - skipped)
        skipped, in_a_row = skipped + bad, (in_a_row + bad) * bad
        hooks.after(step)
        heard = signals.receive(trained, in_a_row)

        done = step + 1
        metrics.step(
            prepared,
            step=first_step + done,
            stage=stage.name,
            stage_step=done,
            loss=trained.loss[0] / manifest.context_parallel,  # which as many have summed
            grad_norm=norm,
            learning_rate=rate,
            skipped=skipped,
            samples=batches.order.samples(step),
            seconds=time.perf_counter() - clock,
            data_wait=waited,
        )
        if heard.in_a_row >= most_skips:
            give_up(stage, metrics, heard.in_a_row, done)
        stopped = heard.stop
        last = stopped or done == stage.steps
        judging = run.held_out and (last or done % run.held_out.options.every == 0)
        saving = last or heard.save or done % manifest.save_every == 0
        logging = last or done % manifest.log_every == 0
        if logging or judging or saving:  # rows must not be younger than the checkpoint
            row = metrics.flush()
            if row and logging:
                run.log(line(row, stage.steps))
        if judging:
            losses = validation.validate(run, stage, trained, metrics, first_step + done)
            patience.see(done, losses)
        if saving or patience.over:
            here = patience.marked(Position(done, int(skipped.item()), int(in_a_row.item())))
            checkpoint.save(
                *(run.out, stage.name, trained, optimizer, here),
                keep=manifest.keep_last,
                world=world,
                behind=run.behind,
                done=run.saved,
            )
            signals.saved()
            run.report({"stage": stage.name, "step": first_step + done})
        if stopped or patience.over:
            break

    stream.close()
    run.settle()
    if not stopped and in_a_row.item() >= most_skips:
        give_up(stage, metrics, int(in_a_row.item()), done)
    metrics.close()
    if stopped:
        run.log(f"{stage.name}: stopped after step {done}, saved")
        return False
    for words in (skips(int(skipped.item()), done), patience.words(done)):
        if words:
            run.log(f"{stage.name}: {words}")
    trained.hand_on()
    validation.check_gate_0(run, stage, before)
    tensors = trained.tensors()
    if stage.parallel == "fsdp":  # the network is in parts for good: the next stage gets a new one
        whole, _ = model_after(manifest, run.out, stage.name, tensors, world)
        hold(whole, manifest, manifest.stages_from(stage), world.device)
        run.transformer = prepare(whole, manifest, world)
    if world.rank == 0:
        export(run.out, manifest, stage.name, run.transformer)
        checkpoint.save_stage(run.out, stage.name, tensors, stage.steps, done)
        run.finished(stage.name)
    world.wait()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a manifest in this process or torchrun's.")
    parser.add_argument("manifest")
    parser.add_argument("--out")
    parser.add_argument("--stage", dest="only")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--new-data", action="store_true")
    options = vars(parser.parse_args())
    manifest = with_model_here(load(options.pop("manifest"), out=options.pop("out")))
    if not train(manifest, manifest.out, **options):
        raise SystemExit(143)  # as of a process that SIGTERM ended


if __name__ == "__main__":
    main()
