"""The history of a repository without the rows that are not in its newest version any more.

    the branch becomes one commit -> tags that hold such rows go, the others are moved to commits
    without a past -> files that no branch and no tag names are deleted from the Hub's storage

Each step can be repeated: a command that was killed is started again.
"""

from __future__ import annotations

import numpy as np

from pipelines.publish.layout import FOLDER
from pipelines.publish.repository import Repository

MOVING = "moving-tag-"
ELSEWHERE = (
    "not reached: caches and copies of those who downloaded it, duplicates of the repository, pull "
    "requests (refs/pr) and what search engines keep"
)


def purge_history(repository: Repository, branch: str, folders: tuple[str, ...]) -> list[str]:
    """Forget what earlier versions held; returns lines that say what was done and what remains.

    folders: those of the configuration, from which files are deleted for good.
    """
    present = _ids(repository, repository.branches()[branch])
    if len(repository.call("list_repo_commits", revision=branch)) > 1:
        message = "the present version; what was before is gone"
        repository.call("super_squash_history", branch=branch, commit_message=message)
    gone = _move_tags(repository, branch, present)
    left = [
        name
        for name, commit in repository.branches().items()
        if name != branch and _holds_others(_ids(repository, commit), present)
    ]
    deleted = _delete_files(repository, folders)
    lines = [
        f"history: one commit on {branch}; tags that held removed rows are deleted"
        f" ({', '.join(gone) or 'there were none'}); {deleted} stored files deleted for good"
    ]
    if left:
        lines.append(f"these branches still hold removed rows: {', '.join(left)}")
    return [*lines, ELSEWHERE]


def _ids(repository: Repository, commit: str) -> dict[str, np.ndarray] | None:
    """The ids of every configuration at a commit; None where there are files without a record."""
    names = set(repository.call("list_repo_files", revision=commit))
    configs = [
        name.removeprefix(f"{FOLDER}/").removesuffix(".json")
        for name in names
        if name.startswith(f"{FOLDER}/") and name.endswith(".json")
    ]
    if not configs and any(name.endswith(".parquet") for name in names):
        return None
    return {config: repository.publication(config, commit).ids() for config in configs}


def _holds_others(
    found: dict[str, np.ndarray] | None, present: dict[str, np.ndarray] | None
) -> bool:
    """Whether a version holds rows that the present one does not, or may hold some."""
    if found is None or present is None:
        return True
    none = np.zeros(0, np.uint64)
    return any(not np.isin(ids, present.get(name, none)).all() for name, ids in found.items())


def _move_tags(
    repository: Repository, branch: str, present: dict[str, np.ndarray] | None
) -> list[str]:
    """Delete tags of versions with other rows than the present one; move the others to commits
    without a past. Returns the names of those deleted."""
    head = repository.branches()[branch]
    for name in repository.branches():  # of a command that was killed
        if name.startswith(MOVING):
            _settle(repository, name.removeprefix(MOVING))
    gone = []
    for tag, commit in repository.tags().items():
        if commit == head or len(repository.call("list_repo_commits", revision=tag)) == 1:
            continue
        if _holds_others(_ids(repository, commit), present):
            repository.call("delete_tag", tag=tag)
            gone.append(tag)
            continue
        same = _records(repository, commit) == _records(repository, head)
        moving = f"{MOVING}{tag}"
        repository.call("create_branch", branch=moving, revision=head if same else commit)
        if not same:
            repository.call("super_squash_history", branch=moving, commit_message=f"{tag}, alone")
        _settle(repository, tag)
    return gone


def _settle(repository: Repository, tag: str) -> None:
    """Put a tag where its moving branch is, if that has no past yet: else it was not ready."""
    moving = f"{MOVING}{tag}"
    if len(repository.call("list_repo_commits", revision=moving)) == 1:
        if tag in repository.tags():
            repository.call("delete_tag", tag=tag)
        repository.call("create_tag", tag=tag, revision=moving)
    repository.call("delete_branch", branch=moving)


def _records(repository: Repository, commit: str) -> dict[str, bytes]:
    configs = _ids(repository, commit) or {}
    return {c: repository.publication(c, commit).text() for c in configs}


def _delete_files(repository: Repository, folders: tuple[str, ...]) -> int:
    """Delete stored files of ours that no branch and no tag names; returns how many."""
    kept = set()
    for commit in {*repository.branches().values(), *repository.tags().values()}:
        for entry in repository.call("list_repo_tree", recursive=True, revision=commit):
            lfs = getattr(entry, "lfs", None)
            if lfs is not None:
                kept.add(lfs.sha256)
    ours = (*(f"{folder}/" for folder in folders), f"{FOLDER}/", "contact_sheet.png")
    found = [
        file
        for file in repository.call("list_lfs_files")
        if file.file_oid not in kept and file.filename.startswith(ours)
    ]
    if found:
        repository.call("permanently_delete_lfs_files", found)
    return len(found)
