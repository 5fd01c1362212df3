"""A dataset repository on the Hub: what it holds at a revision, and of one of its publications."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.publish.calls import steadily
from pipelines.publish.layout import Publication, Sent, record_names

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPO_TYPE = "dataset"
NAMES_PER_CALL = 200
REGULAR_BYTES = 16 << 20


@dataclass(frozen=True)
class Repository:
    """One repository; every call as ``calls.steadily``. folder: where downloads go. kind:
    ``dataset`` or ``space``."""

    api: HfApi
    repo_id: str
    folder: Path
    kind: str = REPO_TYPE

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of ``HfApi`` on this repository."""
        options |= {"repo_type": self.kind}

        def whole() -> Any:
            found = getattr(self.api, method)(self.repo_id, *arguments, **options)
            return list(found) if isinstance(found, Iterator) else found

        return steadily(whole)

    def info(self) -> Any:
        """What the Hub says of it; None when there is none."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self.call("repo_info")
        except ValueError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return None
            raise

    def branches(self) -> dict[str, str]:
        """The commit of every branch."""
        return {ref.name: ref.target_commit for ref in self.call("list_repo_refs").branches}

    def tags(self) -> dict[str, str]:
        """The commit of every tag."""
        return {ref.name: ref.target_commit for ref in self.call("list_repo_refs").tags}

    def download(self, name: str, revision: str) -> Path | None:
        """A file at a revision, below ``folder``; None when it is not there."""
        from huggingface_hub.errors import EntryNotFoundError

        def load() -> Path | None:
            try:
                found = self.api.hf_hub_download(
                    self.repo_id, name, repo_type=self.kind, revision=revision,
                    local_dir=self.folder / "held" / revision,
                )  # fmt: skip
            except EntryNotFoundError:
                return None
            return Path(found)

        return steadily(load)

    def text(self, name: str, revision: str) -> str | None:
        """A text file at a revision, if there is one."""
        path = self.download(name, revision)
        return None if path is None else path.read_text(encoding="utf-8", errors="replace")

    def publication(self, config: str, revision: str) -> Publication:
        """What is published of a configuration; empty where nothing is."""
        text, ids = (self.download(name, revision) for name in record_names(config))
        if text is None:
            return Publication()
        where = f"{self.repo_id}@{revision}/{record_names(config)[0]}"
        return Publication.parse(text.read_bytes(), ids.read_bytes() if ids else b"", where)

    def holds(self, names: Iterable[str], revision: str) -> dict[str, Any]:
        """What the Hub says of files that are there at a revision."""
        asked = list(names)
        held: dict[str, Any] = {}
        for first in range(0, len(asked), NAMES_PER_CALL):
            some = asked[first : first + NAMES_PER_CALL]
            held |= {i.path: i for i in self.call("get_paths_info", some, revision=revision)}
        return held

    def verify(self, files: Mapping[str, Sent], revision: str) -> None:
        """Compare size and checksum of files with what the Hub holds at a revision.

        Raises ValueError that names the files that differ or are missing.
        """
        held = self.holds(files, revision)
        wrong = [name for name, file in files.items() if not is_same(held.get(name), file)]
        if wrong:
            named = ", ".join(wrong[:5]) + " ..." * (len(wrong) > 5)
            raise ValueError(
                f"the Hub holds {len(wrong)} files otherwise than they were sent: "
                f"{named}. Delete them there and run the same command again"
            )


def upload(repository: Repository, branch: str, folder: Path, name: str) -> tuple[Any, Sent]:
    """Bring a file below ``folder`` to the Hub's storage; the operation that commits it, and its
    sums."""
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(name, folder / name)
    repository.call("preupload_lfs_files", [operation], revision=branch)
    # after the upload, which hashes as it reads
    return operation, sums(folder / name, operation.upload_info.sha256.hex())


def uploaded(name: str, sent: Sent) -> Any:
    """The operation that commits a file which another machine brought to the Hub's storage."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    operation = CommitOperationAdd(name, b"")
    digest = bytes.fromhex(sent.sha256)
    operation.upload_info = UploadInfo(size=sent.size, sample=b"", sha256=digest)
    operation._upload_mode, operation._is_uploaded = "lfs", True
    return operation


def sums(path: Path, sha256: str) -> Sent:
    """Size and checksums of a file; its sha256 is known."""
    size = path.stat().st_size
    sha1 = None
    if size <= REGULAR_BYTES:
        sha1 = hashlib.sha1(f"blob {size}\0".encode() + path.read_bytes()).hexdigest()
    return Sent(size, sha256, sha1)


def is_same(info: Any, file: Sent) -> bool:
    """Whether what the Hub says of a file is what was sent."""
    if info is None or getattr(info, "size", None) != file.size:
        return False
    lfs = getattr(info, "lfs", None)
    return bool(lfs.sha256 == file.sha256 if lfs else info.blob_id == file.sha1)
