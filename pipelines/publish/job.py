"""``layerflow publish``: a corpus as a dataset repository, on the Hub or in a local folder.

The files, in the order in which they are made: ``data/`` (the corpus), ``preview/`` (what the
viewer plays), the rejected table on request, the contact sheet, statistics, licences, the card.
"""

from __future__ import annotations

from pathlib import Path

from layerflow.files import publish_folder, sweep
from layerflow.locations import one_line
from layerflow.outputs import free_output, local_output
from pipelines.publish.files import PublishOptions, make_files, make_plan
from pipelines.publish.licences import LicenceReport


def run_publish(
    path: Path,
    options: PublishOptions,
    *,
    dry_run: Path | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> list[str]:
    """Publish a corpus; returns lines that say what was done.

    dry_run: a folder, which must not exist, that gets what the repository would hold.
    workers: processes that make previews, by default one per CPU; 0: this process.
    Raises ValueError for a broken corpus, a licence that forbids it, or names that are not taken.
    """
    if dry_run is not None:
        dry_run = local_output(dry_run)
    plan = make_plan(path, options, workers=workers)
    if dry_run is None:
        from pipelines.publish.hub import push

        return [*push(plan, quiet=quiet), *licence_lines(plan.licences)]
    dry_run = free_output(dry_run)
    building = dry_run.with_name(f".{dry_run.name}.{plan.key}.building")
    building.mkdir(parents=True, exist_ok=True)  # of an interrupted run it is continued
    sweep(building)
    files = [name for name, _ in make_files(plan, building, quiet=quiet)]
    publish_folder(building, dry_run)
    size = sum((dry_run / name).stat().st_size for name in files)
    done = (
        f"{dry_run}: {len(plan.assignment.names)} clips in {len(files)} files, {size / 1e6:.1f} MB"
    )
    return [done, *licence_lines(plan.licences), f'load_dataset("{dry_run}") opens it']


def licence_lines(report: LicenceReport) -> list[str]:
    if not report.unstated:
        return []
    named = ", ".join(one_line(source[:200]) for source in report.unstated_sources[:5])
    return [f"{report.unstated} clips have no licence on record, from {named}"]
