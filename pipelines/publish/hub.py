"""Pushing to the Hugging Face Hub: what is new goes up, one step shows it, a tag names it.

    what is there -> the plan -> files, made and sent one by one -> one step -> checksums -> tag

Up to 100 files go with the commit that shows them. More are committed in batches to a branch of
their own first. A last commit copies from it on the Hub, or, where that would have too many
entries, the branch shown is moved to it; then it is deleted. A run that was interrupted goes on
with the files in its working folder, with what its tasks recorded, and on that branch.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from layerflow.corpus.log import split_address
from layerflow.corpus.store import in_object_store
from layerflow.corpus.table import file_sha256
from layerflow.files import sweep, write_bytes
from layerflow.ray_start import ray_runs
from pipelines.engine.remote_staging import begin
from pipelines.engine.staging import Staging
from pipelines.engine.workers import Pool
from pipelines.publish.calls import MovedError, hub_api
from pipelines.publish.card import is_foreign
from pipelines.publish.files import (
    Made,
    PublishOptions,
    PublishPlan,
    make_parts,
    make_plan,
    make_record,
    make_rest,
    plan_of,
)
from pipelines.publish.history import purge_history
from pipelines.publish.large.progress import ByteProgress
from pipelines.publish.large.reference import move_branch
from pipelines.publish.layout import Publication, Sent, next_tag, record_names
from pipelines.publish.repository import Repository, is_same, sums, upload, uploaded

BATCH_FILES = 100
BATCH_BYTES = 8 << 30
SWITCH_ENTRIES = 300
STAGING = "publishing-"
MAIN = "main"


def push(
    path: str | Path,
    options: PublishOptions,
    work: Path,
    *,
    purge: bool,
    workers: int | None,
    quiet: bool,
    shared: str | Path | None = None,
) -> tuple[PublishPlan, list[str]]:
    """Publish to the Hub; returns the plan, and lines that say where, and that it was verified.

    work: a folder for files on their way. purge: forget what earlier versions held. shared: a
    folder of all nodes, or of an object store, for what tasks did; with it, in a Ray cluster and
    for a corpus in an object store files are made and sent by tasks. Raises ValueError for no
    token, no network, a public repository where private is needed, and for files that the Hub
    holds differently from what was sent.
    """
    name = f"{options.repo_id.replace('/', '--')}--{options.config}"
    base = work / name
    repository = Repository(hub_api(), options.repo_id, base)
    branch = options.revision or MAIN
    info = repository.info()
    head = repository.branches().get(branch) if info else None
    before = repository.publication(options.config, head) if head else Publication()
    pool = Pool(workers, quiet)
    staging = _staging(path, shared, name, base)
    plan = (
        make_plan(Path(path), options, workers=workers, before=before)
        if staging is None
        else _surveyed(path, options, staging, pool, before)
    )
    if info is None:
        repository.call("create_repo", private=options.private, exist_ok=True)
        info = repository.info()
    if plan.licences.forbidding and not info.private:
        raise ValueError(
            f"{options.repo_id} exists and is public, but clips forbid redistribution; make it "
            "private on the Hub or publish to another repository"
        )
    if head is None:
        if options.revision:
            repository.call("create_branch", branch=branch, exist_ok=True)
        head = repository.branches()[branch]
    sending = Sending(repository, plan, base / plan.key, branch, head, pool, staging)
    commit, lines = sending.run(quiet)
    visible = "private" if info.private else "public"
    where = f"{repository.api.endpoint}/datasets/{options.repo_id} ({visible}), commit {commit}"
    if options.private and not info.private:
        lines.append("note: the repository existed and is public; --private did not change that")
    if purge:
        lines += purge_history(repository, branch, options.folders())
    if staging is not None:  # what is known of shards serves the next version
        (staging if shared is None else staging.below("files")).clear()
    shutil.rmtree(base, ignore_errors=True)
    return plan, [where, *lines]


def _staging(path: str | Path, shared: str | Path | None, name: str, base: Path) -> Staging | None:
    """Where tasks leave what they did; None where this machine does everything itself."""
    if shared is None and not in_object_store(path) and not ray_runs():
        return None
    corpus, _ = split_address(path)
    inputs = () if in_object_store(corpus) else (str(Path(corpus).resolve()),)
    if shared is None:
        return begin(base / "tasks", inputs, frozenset())
    below = f"{str(shared).rstrip('/')}/{name}"
    return begin(below if in_object_store(below) else Path(below), inputs, frozenset())


def _surveyed(
    path: str | Path, options: PublishOptions, staging: Staging, pool: Pool, before: Publication
) -> PublishPlan:
    from pipelines.publish.large.survey import survey

    corpus = survey(path, staging.below("shards"), pool)
    if not len(corpus):
        raise ValueError(f"{path} holds no clip to publish")
    here = os.cpu_count() or 1
    return plan_of(corpus, options, here if pool.workers is None else pool.workers, before)


@dataclass
class Sending:
    """One publication on its way to a branch that is at the commit ``head``.

    folder: files on this disk. tasks: where tasks leave what they did, if they do it. sent:
    checksums of all files of the publication so far; pending: operations that no commit has;
    staged: names that the staging branch has; held: what the Hub says of files at ``head``.
    """

    repository: Repository
    plan: PublishPlan
    folder: Path
    branch: str
    head: str
    pool: Pool
    tasks: Staging | None = None
    sent: dict[str, Sent] = field(default_factory=dict)
    pending: list[Any] = field(default_factory=list)
    staged: set[str] = field(default_factory=set)
    held: dict[str, Any] = field(default_factory=dict)
    _bytes: int = 0

    @property
    def staging(self) -> str:
        return f"{STAGING}{self.plan.options.config}-{self.plan.key}"

    def run(self, quiet: bool) -> tuple[str, list[str]]:
        """Make and send everything; the commit that the branch is at then, and lines about it."""
        plan, card = self.plan, self.repository.text("README.md", self.head)
        if card is not None and is_foreign(card):
            raise ValueError(
                f"{plan.options.repo_id} holds a README.md with a text that this command did not "
                "write and would replace: publish to another repository, or delete that file on "
                "the Hub"
            )
        tags = self.repository.tags()
        if plan.options.tag in tags and plan.options.tag != plan.before.tag:
            raise ValueError(f"the tag {plan.options.tag} names another version; choose another")
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        known = self._known()
        self.sent = {name: known[name] for name, key in plan.keys.items()
                     if name in known and known[name].key == key}  # fmt: skip
        for _ in self._by_tasks() if self.tasks is not None else self._here(quiet):
            if len(self.pending) >= BATCH_FILES or self._bytes >= BATCH_BYTES:
                self._stage()
        for made in make_rest(plan, self.folder, self.sent, existing_card=card):
            self._add(made, large=made.name.endswith((".parquet", ".png")))
        changed, files = len(self.pending) + len(self.staged), len(self.sent)
        gone = self._stale()
        if changed or gone:
            commit = self._switch(tags, gone)
            said = f"new: {changed} of {files} files"
        else:
            commit, said = self.head, f"nothing is new: all {files} files are there"
        self.repository.verify(self.sent, commit)
        lines = [f"verified: {len(self.sent)} files, size and checksum as sent", said]
        lines += self._tag(commit)
        for name in self.repository.branches():
            if name.startswith(f"{STAGING}{plan.options.config}-"):
                self.repository.call("delete_branch", branch=name)
        return commit, lines

    def _known(self) -> dict[str, Sent]:
        """Files that need not be sent: as published, and on the staging branch."""
        plan = self.plan
        every = {*plan.before.files, *plan.keys}
        self.held = self.repository.holds(sorted(every), self.head)
        known = {n: s for n, s in plan.before.files.items() if is_same(self.held.get(n), s)}
        if self.staging in self.repository.branches():
            record = self.repository.publication(plan.options.config, self.staging)
            there = self.repository.holds(record.files, self.staging)
            good = {n: s for n, s in record.files.items() if is_same(there.get(n), s)}
            keys = self.plan.keys
            self.staged = {name for name, sent in good.items() if keys.get(name) == sent.key}
            known |= {name: good[name] for name in self.staged}
        return known

    def _old(self, name: str) -> Path | None:
        return self.repository.download(name, self.head) if name in self.held else None

    def _here(self, quiet: bool) -> Iterator[None]:
        """Make and send the files of all parts, one by one."""
        kinds = (False, True)  # media, previews
        sizes = {self.plan.name(p, kind): p.bytes for p in self.plan.parts for kind in kinds}
        left = {name: size for name, size in sizes.items() if name not in self.sent}
        progress = ByteProgress(left, quiet)
        for made in make_parts(self.plan, self.folder, self.sent, old=self._old, quiet=quiet):
            self._add(made, large=True)
            progress.add(made.name)
            yield

    def _by_tasks(self) -> Iterator[None]:
        """The same by tasks, which leave no file here."""
        from pipelines.publish.large.tasks import Job, send_parts

        assert self.tasks is not None
        data, previews = (features.arrow_schema for features in self.plan.features)
        job = Job(self.plan.corpus.address, self.plan.options.repo_id, self.branch, self.head,
                  self.plan.shards, (data, previews))  # fmt: skip
        files = self.tasks.below("files")
        for name, sent in send_parts(self.plan, job, self.sent, self.held, files, self.pool):
            self.sent[name] = sent
            if not is_same(self.held.get(name), sent):
                self._pend(uploaded(name, sent), 0)  # no file of it lies here
            yield

    def _add(self, made: Made, *, large: bool) -> None:
        """Send a file that was made, unless the Hub has just this one there."""
        from huggingface_hub import CommitOperationAdd

        path = self.folder / made.name
        about: dict[str, Any] = {"key": made.key, "held": made.held}
        if made.name in self.held or not large:
            self.sent[made.name] = replace(sums(path, file_sha256(path)), **about)
            if made.name not in self.held:
                self.held |= self.repository.holds([made.name], self.head)
            if is_same(self.held.get(made.name), self.sent[made.name]):
                return
        operation: Any = CommitOperationAdd(made.name, path)
        if large:
            operation, sent = upload(self.repository, self.branch, self.folder, made.name)
            self.sent[made.name] = replace(sent, **about)
        self._pend(operation, path.stat().st_size)

    def _pend(self, operation: Any, size: int) -> None:
        self.pending.append(operation)
        self.staged.discard(operation.path_in_repo)
        self._bytes += size

    def _stage(self) -> None:
        """Commit what is pending to the staging branch, with a record of all that it has."""
        names = [operation.path_in_repo for operation in self.pending]
        self.repository.call("create_branch", branch=self.staging, revision=self.head,
                             exist_ok=True)  # fmt: skip
        self.staged |= set(names)
        record = Publication(files={name: self.sent[name] for name in sorted(self.staged)})
        text, ids = (self.folder / name for name in record_names(self.plan.options.config))
        write_bytes(text, record.text())
        write_bytes(ids, record.id_bytes())
        self._commit([*self.pending, *self._record_operations()], self.staging, "on the way")
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        self.pending, self._bytes = [], 0

    def _record_operations(self) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        names = record_names(self.plan.options.config)
        return [CommitOperationAdd(name, self.folder / name) for name in names]

    def _commit(self, operations: list[Any], branch: str, message: str, **more: Any) -> str:
        found = self.repository.call(
            "create_commit", operations, commit_message=message, revision=branch, **more
        )
        return str(found.oid)

    def _switch(self, tags: Mapping[str, str], gone: list[Any]) -> str:
        """The one step that shows this version; returns the commit that is shown then."""
        plan = self.plan
        tag = plan.options.tag or ""
        if not tag and self.branch == MAIN:
            tag = next_tag(tags, plan.corpus.version.number if plan.corpus.version else None)
        if tag in tags:
            raise ValueError(f"the tag {tag} names what was published before; choose another")
        record = make_record(plan, self.folder, self.sent, tag)
        rest = [*self.pending, *self._record_operations(), *gone]
        message = f"{tag}: {len(record.ids())} layered clips ({plan.options.config})".lstrip(": ")
        try:
            commit = self._moved(rest, gone, message) or self._copied(rest, message)
        except MovedError as error:
            commit = self.repository.branches()[self.branch]
            there = self.repository.publication(plan.options.config, commit)
            if there.text() != record.text():
                raise ValueError(
                    f"{plan.options.repo_id} was changed meanwhile: start the same command again"
                ) from error
        for made in map(Made, record_names(plan.options.config)):
            path = self.folder / made.name
            self.sent[made.name] = sums(path, file_sha256(path))
        self.plan = replace(plan, before=record)
        return commit

    def _copied(self, rest: list[Any], message: str) -> str:
        """One commit, which copies from the staging branch."""
        from huggingface_hub import CommitOperationCopy

        copies = [CommitOperationCopy(n, n, src_revision=self.staging) for n in sorted(self.staged)]
        return self._commit([*copies, *rest], self.branch, message, parent_commit=self.head)

    def _moved(self, rest: list[Any], gone: list[Any], message: str) -> str | None:
        """The rest goes to the staging branch, too, and the branch that is shown is moved there.

        gone: those of the rest that delete. None where that is not needed, or not possible: then
        ``_copied`` does it. Raises MovedError where somebody has changed the branch meanwhile.
        """
        if len(self.staged) + len(rest) <= SWITCH_ENTRIES or not self.staged:
            return None
        history = self.repository.call("list_repo_commits", revision=self.staging)
        if self.head not in {commit.commit_id for commit in history}:
            return None  # it began before a change that it would undo
        there = set(self.repository.call("list_repo_files", revision=self.staging))
        some = [op for op in rest if op not in gone or op.path_in_repo in there]
        commit = self.repository.branches()[self.staging]
        for first in range(0, len(some), BATCH_FILES):
            commit = self._commit(some[first : first + BATCH_FILES], self.staging, message)
        if move_branch(self.repository, self.branch, self.head, commit):
            return commit
        if self.repository.branches()[self.branch] != self.head:
            raise MovedError("the branch was changed")
        for operation in rest:  # to be committed once more
            operation.__dict__.pop("_is_committed", None)
        return None

    def _tag(self, commit: str) -> list[str]:
        """Give this version its tag, if it has none yet."""
        tag = self.plan.options.tag or self.plan.before.tag
        tags = self.repository.tags()
        if not tag:
            return []
        if tag not in tags:
            self.repository.call("create_tag", tag=tag, revision=commit)
        return [f'tag {tag}: open_corpus("hf://datasets/{self.plan.options.repo_id}@{tag}")']

    def _stale(self) -> list[Any]:
        """Operations that remove older files of this configuration."""
        from huggingface_hub import CommitOperationDelete

        folders = "|".join(map(re.escape, self.plan.options.folders()))
        file = re.compile(rf"(?:{folders})/(?:more-\d+/)?[\w.]+-\d{{5}}(?:-of-\d{{5}})?\.parquet")
        names = self.repository.call("list_repo_files", revision=self.head)
        return [CommitOperationDelete(n) for n in names if n not in self.sent and file.fullmatch(n)]
