"""On which devices of a cluster the workers train: decided from its nodes, and said.

The driver's own machine does not count: the head of a cluster often has no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from manifests.train import TrainManifest

ACCELERATOR = "accelerator_type:"  # Ray's resource that names a node's accelerator
CPU_DEFAULT = 1.0  # CPUs a worker reserves when the manifest says nothing


@dataclass(frozen=True)
class Node:
    """What one node of the cluster has, in Ray's terms."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> float:
        return float(self.resources.get("GPU", 0.0))

    @property
    def accelerators(self) -> set[str]:
        return {name.removeprefix(ACCELERATOR) for name in self.resources if ACCELERATOR in name}


@dataclass(frozen=True)
class Placement:
    """gpus: one a worker, or none. accelerator: the GPUs' type, where all are of one and it is
    known. said: the decision and what it rests on, for people. spare: whether the cluster has
    more GPUs than workers, so that sampling gets one of its own."""

    gpus: bool
    accelerator: str | None
    said: str
    spare: bool = False


def place(manifest: TrainManifest, nodes: Sequence[Node]) -> Placement:
    """Decide where the workers of a manifest train.

    GPUs when the manifest asks for them, or, left out, when the nodes that may be used have any.
    With `wait_for_nodes`, whatever is not there yet is waited for, and said. Else ValueError for
    GPUs, an accelerator type or labels that no node has, for too few GPUs where `gpus` was left
    out, and for workers that need more than any node has.
    """
    wait = manifest.wait_for_nodes
    usable = [node for node in nodes if manifest.labels.items() <= node.labels.items()]
    if not usable and not wait:
        raise ValueError(f"no node of the cluster has the labels {manifest.labels}")
    kind = manifest.accelerator_type
    if kind is not None:
        usable = [node for node in usable if kind in node.accelerators]
        if not usable and not wait:
            there = sorted({name for node in nodes for name in node.accelerators})
            raise ValueError(
                f"accelerator_type: no node of the cluster has {kind}; "
                f"there are {', '.join(there) or 'no accelerators'}"
            )
    found = int(sum(node.gpus for node in usable))
    gpus = found > 0 if manifest.wants_gpus is None else manifest.wants_gpus
    if gpus and not found and not wait:
        raise ValueError(
            f"gpus: true, but the cluster has no GPU ({_size(usable)}). Start nodes with GPUs, "
            "say `wait_for_nodes: true` if an autoscaler makes them, or `gpus: false` for CPUs"
        )
    return _placement(manifest, usable, gpus)


def _placement(manifest: TrainManifest, nodes: Sequence[Node], gpus: bool) -> Placement:
    workers, room = max(1, manifest.workers), _room(manifest, nodes, gpus)
    known = None
    if gpus:
        types = {name for node in nodes if node.gpus for name in node.accelerators}
        known = manifest.accelerator_type or (types.pop() if len(types) == 1 else None)
        count = sum(node.gpus for node in nodes)
        said = f"{workers} workers train on GPUs ({known or 'of unknown type'}), one each"
        said += f", of {count:g} in the cluster"
    else:
        why = "gpus: false" if manifest.gpus is False else f"the cluster has none ({_size(nodes)})"
        said = f"{workers} workers train on CPUs, without GPUs: {why}"
    if room < (manifest.min_workers or workers):
        if gpus and manifest.wants_gpus is None and not manifest.wait_for_nodes:
            raise ValueError(
                f"the cluster has room for {room} workers with a GPU each, not for {workers}: ask "
                "for fewer, or say `gpus: false` (CPUs) or `gpus: true` (wait for more nodes)"
            )
        said += f"; there is room for {room}: the run waits until more nodes join"
    return Placement(gpus, known, said, gpus and sum(node.gpus for node in nodes) > workers)


def _room(manifest: TrainManifest, nodes: Sequence[Node], gpus: bool) -> int:
    """How many workers the nodes hold. ValueError for none, unless they are to be waited for."""
    wanted = worker_resources(manifest, gpus)
    room = sum(
        int(min(node.resources.get(name, 0.0) // amount for name, amount in wanted.items()))
        for node in nodes
    )
    if not room and not manifest.wait_for_nodes:
        most = {name: max(node.resources.get(name, 0.0) for node in nodes) for name in wanted}
        raise ValueError(
            f"no node has what one worker takes: {wanted}; the most that nodes have: {most}"
        )
    return room


def worker_resources(manifest: TrainManifest, gpus: bool) -> dict[str, float]:
    """What Ray reserves for one worker."""
    wanted = {"CPU": CPU_DEFAULT, **manifest.resources_per_worker}
    return {**wanted, "GPU": 1.0} if gpus else wanted


def _size(nodes: Sequence[Node]) -> str:
    cpus = sum(node.resources.get("CPU", 0.0) for node in nodes)
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus:g} CPUs"
