"""Pushing to the Hugging Face Hub: every blob first, then one commit, then verification.

Files are made one after the other, deterministically, and leave the disk once they are up. A run
that was interrupted makes the same files again, and the Hub says which blobs it already has: only
missing ones are sent. The token comes from where ``huggingface_hub`` looks for it; it is never
printed or stored.
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.publish.card import is_foreign
from pipelines.publish.files import PublishPlan, make_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 6
LONGEST_WAIT = 120.0
REGULAR_BYTES = 16 << 20
AGAIN = "run the same command again: what is already there is not sent again"
PASSING = frozenset({408, 409, 412, 422, 425, 429, 500, 502, 503, 504})
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sent:
    """What was sent for one file; sha1 is git's, of ``blob <size>\\0`` and the bytes, of files
    that may be stored without LFS (the Hub's limit for those is 10 MB)."""

    size: int
    sha256: str
    sha1: str | None


def push(plan: PublishPlan, *, quiet: bool = False) -> list[str]:
    """Publish to the Hub; returns lines that say where, and that it was verified.

    Raises ValueError for no token, no network, a public repository where private is needed, and
    for files that the Hub holds differently from what was sent.
    """
    api = _api()
    options = plan.options
    steadily(api.create_repo, options.repo_id, repo_type="dataset", private=options.private,
             exist_ok=True)  # fmt: skip
    info = steadily(api.repo_info, options.repo_id, repo_type="dataset")
    if plan.licences.forbidding and not info.private:
        raise ValueError(
            f"{options.repo_id} exists and is public, but clips forbid redistribution; make it "
            "private on the Hub or publish to another repository"
        )
    revision = options.revision or "main"
    if options.revision:
        steadily(api.create_branch, options.repo_id, repo_type="dataset", branch=revision,
                 exist_ok=True)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="layerflow-publish-") as folder:
        old = existing_card(api, options.repo_id, revision, Path(folder) / "old")
        if old is not None and is_foreign(old):
            raise ValueError(
                f"{options.repo_id} holds a README.md with a text that this command did not write "
                "and would replace: publish to another repository, or delete that file on the Hub"
            )
        operations, sent = _upload(api, plan, Path(folder) / "new", revision, old, quiet)
        operations += _stale(api, plan, revision, sent)
        commit = steadily(
            api.create_commit,
            options.repo_id,
            operations,
            commit_message=f"{len(plan.assignment.names)} layered clips ({options.config})",
            repo_type="dataset",
            revision=revision,
        )
    verify(api, options.repo_id, commit.oid or revision, sent)
    visible = "private" if info.private else "public"
    lines = [f"{api.endpoint}/datasets/{options.repo_id} ({visible}), commit {commit.oid}"]
    lines.append(f"verified: {len(sent)} files, size and checksum as sent")
    if options.private and not info.private:
        lines.append("note: the repository existed and is public; --private did not change that")
    return lines


def _api() -> HfApi:
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set; unset it to publish, or use --dry-run DIR")
    if get_token() is None:
        raise ValueError("there is no Hub token: run `hf auth login` or set HF_TOKEN")
    return HfApi(library_name="layerflow-toolkit")


def steadily(call: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call the Hub, again after a growing wait when it is busy, failing or out of reach.

    Raises ValueError that says what the Hub answered and what to do.
    """
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(*arguments, **options)
        except (HfHubHTTPError, TransportError, ConnectionError, RuntimeError) as raised:
            # an upload wraps what happened in a RuntimeError
            error = raised.__cause__ if type(raised) is RuntimeError else raised
            if isinstance(error, HfHubHTTPError):
                status = error.response.status_code if error.response is not None else 0
                asked = error.response.headers.get("Retry-After") if error.response else None
                problem, passing = _explained(status, error), status in PASSING
            elif isinstance(error, TransportError | ConnectionError):
                problem, passing, asked = f"the Hub cannot be reached: {error}; {AGAIN}", True, None
            else:
                raise
            if not passing or attempt == ATTEMPTS:
                raise ValueError(problem) from raised
            _wait(attempt, asked)
    raise AssertionError("unreachable")


def _wait(attempt: int, asked: str | None) -> None:
    seconds = min(LONGEST_WAIT, 2.0**attempt)
    if asked and asked.isdigit():
        seconds = min(LONGEST_WAIT, max(1.0, float(asked)))
    time.sleep(seconds * (1 + 0.1 * random.random()))


def _explained(status: int, error: Exception) -> str:
    advice = {
        401: "the token is not valid: run `hf auth login` again",
        403: "the token may not write there: it needs write access to this namespace",
        404: "there is no such repository or branch, or the token may not see it",
    }.get(status, AGAIN)
    text = re.sub(r"hf_[A-Za-z0-9]+", "hf_...", str(error).strip())
    return f"the Hub answered {status}: {text.splitlines()[0][:300] if text else ''}; {advice}"


def existing_card(api: HfApi, repo_id: str, revision: str, folder: Path) -> str | None:
    """The repository's README.md at a revision, if there is one."""
    from huggingface_hub.errors import EntryNotFoundError

    def load() -> str | None:
        try:
            path = api.hf_hub_download(
                repo_id, "README.md", repo_type="dataset", revision=revision, local_dir=folder
            )
        except EntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8", errors="replace")

    return steadily(load)


def _upload(
    api: HfApi, plan: PublishPlan, folder: Path, revision: str, card: str | None, quiet: bool
) -> tuple[list[Any], dict[str, Sent]]:
    """Make and send every file; returns the operations of the commit, and what was sent."""
    from huggingface_hub import CommitOperationAdd

    folder.mkdir()
    operations: list[Any] = []
    sent: dict[str, Sent] = {}
    for name, large in make_files(plan, folder, existing_card=card, quiet=quiet):
        path = folder / name
        operation = CommitOperationAdd(name, path)
        if large:
            steadily(
                api.preupload_lfs_files,
                plan.options.repo_id,
                [operation],
                repo_type="dataset",
                revision=revision,
            )
        sent[name] = _sent(operation, path)  # after the upload, which hashes as it reads
        if operation.path_or_fileobj == b"":  # it is up: the client let go of the file
            path.unlink()
        operations.append(operation)
    return operations, sent


def _sent(operation: Any, path: Path) -> Sent:
    """Checksums of a file; its sha256 is the one that the client has computed already."""
    size = path.stat().st_size
    sha1 = None
    if size <= REGULAR_BYTES:
        sha1 = hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest()
    return Sent(size, operation.upload_info.sha256.hex(), sha1)


def _stale(api: HfApi, plan: PublishPlan, revision: str, sent: dict[str, Sent]) -> list[Any]:
    """Operations that remove older shards of this configuration."""
    from huggingface_hub import CommitOperationDelete

    folders = plan.options.folders()
    shard = re.compile(r"[\w.]+-\d{5}-of-\d{5}\.parquet")
    held = steadily(
        api.list_repo_files, plan.options.repo_id, repo_type="dataset", revision=revision
    )
    return [
        CommitOperationDelete(name)
        for name in held
        if name not in sent
        and name.rpartition("/")[0] in folders
        and shard.fullmatch(name.rpartition("/")[2])
    ]


def verify(api: HfApi, repo_id: str, revision: str, sent: dict[str, Sent]) -> None:
    """Compare size and checksum of every file with what the Hub holds at a revision.

    Raises ValueError that names the files that differ or are missing.
    """
    names = list(sent)
    held: dict[str, Any] = {}
    for first in range(0, len(names), 200):
        some = names[first : first + 200]
        for info in steadily(
            api.get_paths_info, repo_id, some, repo_type="dataset", revision=revision
        ):
            held[info.path] = info
    wrong = [name for name, file in sent.items() if not _same(held.get(name), file)]
    if wrong:
        named = ", ".join(wrong[:5]) + " ..." * (len(wrong) > 5)
        raise ValueError(
            f"the Hub holds {len(wrong)} files otherwise than they were sent: "
            f"{named}. Delete them there and run the same command again"
        )


def _same(info: Any, file: Sent) -> bool:
    if info is None or getattr(info, "size", None) != file.size:
        return False
    lfs = getattr(info, "lfs", None)
    return bool(lfs.sha256 == file.sha256 if lfs else info.blob_id == file.sha1)
