"""``layerflow publish``: a corpus as a dataset repository, on the Hub or in a local folder.

The files, in the order in which they are made: ``data/`` (the corpus), ``preview/`` (what the
viewer plays), the rejected table on request, the contact sheet, statistics, licences, the card,
and ``publication/``, by which a later version sends only what is new.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from layerflow.corpus.store import in_object_store
from layerflow.corpus.table import file_sha256
from layerflow.files import publish_folder, sweep
from layerflow.locations import clean_uri, one_line
from layerflow.outputs import free_output, local_output
from pipelines.publish.files import (
    Made,
    PublishOptions,
    make_parts,
    make_plan,
    make_record,
    make_rest,
)
from pipelines.publish.layout import Sent, next_tag
from pipelines.publish.licences import LicenceReport


def run_publish(
    path: str | Path,
    options: PublishOptions,
    *,
    dry_run: Path | None = None,
    work: Path | None = None,
    shared: str | Path | None = None,
    space: bool = False,
    purge_history: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> list[str]:
    """Publish a corpus; returns lines that say what was done.

    dry_run: a folder, which must not exist, that gets what the repository would hold.
    work: a folder for files on their way to the Hub, by default in the user's cache.
    shared: of tasks, as of ``hub.push``; path may then be a URL of an object store, too.
    space: also push the page of ``layerflow view`` as a static Space of the same name.
    purge_history: leave nothing on the Hub that only earlier versions held.
    workers: processes that make previews, by default one per CPU; 0: this process.
    Raises ValueError for a broken corpus, a licence that forbids it, or names that are not taken.
    """
    if dry_run is None:
        from pipelines.publish.hub import push

        how: dict[str, Any] = {"purge": purge_history, "workers": workers, "quiet": quiet}
        plan, lines = push(path, options, work or work_folder(), shared=shared, **how)
        if space:
            from pipelines.publish.space import push_space

            lines += push_space(plan, work or work_folder(), purge=purge_history)
        return [*lines, *licence_lines(plan.licences)]
    if in_object_store(path):
        raise ValueError(f"{clean_uri(str(path))}: a dry run takes a corpus on this disk")
    dry_run = local_output(dry_run)
    plan = make_plan(Path(path), options, workers=workers)
    dry_run = free_output(dry_run)
    building = dry_run.with_name(f".{dry_run.name}.{plan.key}.building")
    building.mkdir(parents=True, exist_ok=True)  # of an interrupted run it is continued
    sweep(building)
    sent: dict[str, Sent] = {}

    def done(made: Made) -> None:
        file = building / made.name
        sent[made.name] = Sent(file.stat().st_size, file_sha256(file), None, made.key, made.held)

    for made in make_parts(plan, building, {}, quiet=quiet):
        done(made)
    for made in make_rest(plan, building, sent):
        done(made)
    version = plan.corpus.version
    tag = options.tag or next_tag((), version.number if version else None)
    make_record(plan, building, sent, tag)
    publish_folder(building, dry_run)
    size = sum(file.size for file in sent.values())
    done_line = f"{dry_run}: {len(plan.corpus)} clips in {len(sent)} files, {size / 1e6:.1f} MB"
    return [done_line, *licence_lines(plan.licences), f'load_dataset("{dry_run}") opens it']


def work_folder() -> Path:
    """Where files lie on their way: in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "layerflow" / "publish"


def licence_lines(report: LicenceReport) -> list[str]:
    if not report.unstated:
        return []
    named = ", ".join(one_line(source[:200]) for source in report.unstated_sources[:5])
    return [f"{report.unstated} clips have no licence on record, from {named}"]
