"""Pushing to the Hugging Face Hub: what is new goes up, one commit shows it, a tag names it.

    what is there -> the plan -> files, made and sent one by one -> one commit -> checksums -> tag

Up to 100 files go with that commit. More are committed in batches to a branch of their own first,
which the last commit copies from on the Hub; it is deleted then. A run that was interrupted goes on
with the files in its working folder and on that branch.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from layerflow.corpus.table import file_sha256
from layerflow.files import sweep, write_bytes
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
)
from pipelines.publish.history import purge_history
from pipelines.publish.layout import Publication, Sent, next_tag, record_names
from pipelines.publish.repository import Repository, is_same

BATCH_FILES = 100
BATCH_BYTES = 8 << 30
REGULAR_BYTES = 16 << 20
STAGING = "publishing-"
MAIN = "main"


def push(
    path: Path,
    options: PublishOptions,
    work: Path,
    *,
    purge: bool,
    workers: int | None,
    quiet: bool,
) -> tuple[PublishPlan, list[str]]:
    """Publish to the Hub; returns the plan, and lines that say where, and that it was verified.

    work: a folder for files on their way. purge: forget what earlier versions
    held. Raises ValueError for no token, no network, a public repository where private is needed,
    and for files that the Hub holds differently from what was sent.
    """
    base = work / f"{options.repo_id.replace('/', '--')}--{options.config}"
    repository = Repository(hub_api(), options.repo_id, base)
    branch = options.revision or MAIN
    info = repository.info()
    head = repository.branches().get(branch) if info else None
    before = repository.publication(options.config, head) if head else Publication()
    plan = make_plan(path, options, workers=workers, before=before)
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
    sending = Sending(repository, plan, base / plan.key, branch, head)
    commit, lines = sending.run(quiet)
    visible = "private" if info.private else "public"
    where = f"{repository.api.endpoint}/datasets/{options.repo_id} ({visible}), commit {commit}"
    if options.private and not info.private:
        lines.append("note: the repository existed and is public; --private did not change that")
    if purge:
        lines += purge_history(repository, branch, options.folders())
    shutil.rmtree(base, ignore_errors=True)
    return plan, [where, *lines]


@dataclass
class Sending:
    """One publication on its way to a branch that is at the commit ``head``.

    folder: files on this disk. sent: checksums of all files of the publication so far; pending:
    operations that no commit has; staged: names that the staging branch has.
    """

    repository: Repository
    plan: PublishPlan
    folder: Path
    branch: str
    head: str
    sent: dict[str, Sent] = field(default_factory=dict)
    pending: list[Any] = field(default_factory=list)
    staged: set[str] = field(default_factory=set)
    held: dict[str, Any] = field(default_factory=dict)

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
        for made in make_parts(plan, self.folder, self.sent, old=self._old, quiet=quiet):
            self._add(made, large=True)
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

    def _add(self, made: Made, *, large: bool) -> None:
        """Send a file that was made, unless the Hub has just this one there."""
        from huggingface_hub import CommitOperationAdd

        path = self.folder / made.name
        size = path.stat().st_size
        if made.name in self.held or not large:
            self.sent[made.name] = _sums(path, made, file_sha256(path))
            if made.name not in self.held:
                self.held |= self.repository.holds([made.name], self.head)
            if is_same(self.held.get(made.name), self.sent[made.name]):
                return
        operation = CommitOperationAdd(made.name, path)
        if large:
            self.repository.call("preupload_lfs_files", [operation], revision=self.branch)
        # after the upload, which hashes as it reads
        self.sent[made.name] = _sums(path, made, operation.upload_info.sha256.hex())
        self.pending.append(operation)
        self.staged.discard(made.name)
        self._bytes = getattr(self, "_bytes", 0) + size
        full = len(self.pending) >= BATCH_FILES or self._bytes >= BATCH_BYTES
        if made.key and full:  # the others are few and small: the last commit has them
            self._stage()

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
            (self.folder / name).unlink()
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
        """The one commit that shows this version; returns it."""
        from huggingface_hub import CommitOperationCopy

        plan = self.plan
        tag = plan.options.tag or ""
        if not tag and self.branch == MAIN:
            tag = next_tag(tags, plan.corpus.version.number if plan.corpus.version else None)
        if tag in tags:
            raise ValueError(f"the tag {tag} names what was published before; choose another")
        record = make_record(plan, self.folder, self.sent, tag)
        copies = [CommitOperationCopy(n, n, src_revision=self.staging) for n in sorted(self.staged)]
        operations = [*copies, *self.pending, *self._record_operations(), *gone]
        message = f"{tag}: {len(record.ids())} layered clips ({plan.options.config})".lstrip(": ")
        try:
            commit = self._commit(operations, self.branch, message, parent_commit=self.head)
        except MovedError as error:
            commit = self.repository.branches()[self.branch]
            there = self.repository.publication(plan.options.config, commit)
            if there.text() != record.text():
                raise ValueError(
                    f"{plan.options.repo_id} was changed meanwhile: start the same command again"
                ) from error
        for made in map(Made, record_names(plan.options.config)):
            path = self.folder / made.name
            self.sent[made.name] = _sums(path, made, file_sha256(path))
        self.plan = replace(plan, before=record)
        return commit

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


def _sums(path: Path, made: Made, sha256: str) -> Sent:
    """Checksums of a file; its sha256 is known."""
    size = path.stat().st_size
    sha1 = None
    if size <= REGULAR_BYTES:
        sha1 = hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest()
    return Sent(size, sha256, sha1, made.key, made.held)
