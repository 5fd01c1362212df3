"""The part of the Hub's double that answers for branches, tags, history and stored LFS files."""

from __future__ import annotations

import json
from typing import Any

from tests.support.hub_state import Hub, Repo


class References:
    """Methods of the double's handler."""

    hub: Hub

    def _send(self, status: int, body: Any, **more: Any) -> None:
        raise NotImplementedError

    def _missing(self, code: str) -> None:
        raise NotImplementedError

    def _repo(self, repo: str) -> Repo | None:
        raise NotImplementedError

    def branch(self, body: bytes, repo: str, name: str) -> None:
        start = json.loads(body).get("startingPoint")
        self._refer(repo, self.hub.repos[repo].branches, name, start)

    def tag(self, body: bytes, repo: str, revision: str) -> None:
        self._refer(repo, self.hub.repos[repo].tags, json.loads(body)["tag"], revision)

    def _refer(self, repo: str, refs: dict[str, str], name: str, revision: str | None) -> None:
        oid = self.hub.repos[repo].at(revision or "main")
        if name in refs:
            self._send(409, {"error": f"Reference {name} already exists"})
        elif oid is None:
            self._missing("RevisionNotFound")
        else:
            refs[name] = oid
            self._send(200, {})

    def delete_branch(self, body: bytes, repo: str, name: str) -> None:
        self._forget(self.hub.repos[repo].branches, name)

    def delete_tag(self, body: bytes, repo: str, name: str) -> None:
        self._forget(self.hub.repos[repo].tags, name)

    def _forget(self, refs: dict[str, str], name: str) -> None:
        if refs.pop(name, None) is None:
            self._missing("RevisionNotFound")
        else:
            self._send(200, {})

    def refs(self, body: bytes, repo: str) -> None:
        found = self._repo(repo)
        if found:
            kinds = {"branches": ("heads", found.branches), "tags": ("tags", found.tags)}
            listed = {
                kind: [
                    {"name": name, "ref": f"refs/{place}/{name}", "targetCommit": oid}
                    for name, oid in refs.items()
                ]
                for kind, (place, refs) in kinds.items()
            }
            self._send(200, {**listed, "converts": [], "pullRequests": []})

    def push(self, body: bytes, repo: str) -> None:
        """A push of git that brings no object: a branch from one commit to another."""
        size = int(body[:4], 16)
        said, _, wants = body[4:size].partition(b"\0")
        old, new, ref = said.decode().split()
        found, branch = self.hub.repos[repo], ref.removeprefix("refs/heads/")
        assert b"report-status" in wants and body[size:].startswith(b"0000PACK")
        fits = found.branches.get(branch) == old and new in found.commits
        if fits:
            found.branches[branch] = new
        lines = [b"unpack ok\n", f"ok {ref}\n".encode() if fits else f"ng {ref} no\n".encode()]
        report = b"".join(f"{len(line) + 4:04x}".encode() + line for line in lines)
        self._send(200, report + b"0000", mime="application/x-git-receive-pack-result")

    def commits(self, body: bytes, repo: str, revision: str) -> None:
        found = self.hub.repos[repo]
        about = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "message": ""}
        history = found.history(revision)
        self._send(200, [{"id": c, "title": found.commits[c].title, **about} for c in history])

    def squash(self, body: bytes, repo: str, branch: str) -> None:
        found = self.hub.repos[repo]
        if branch not in found.branches:
            self._missing("RevisionNotFound")
            return
        files = found.commits[found.branches[branch]].files
        found.put(files, branch, json.loads(body)["message"], root=True)
        self._send(200, {})

    def lfs_files(self, body: bytes, repo: str) -> None:
        found = self.hub.repos[repo]
        every = {
            file.sha256: {
                "fileOid": file.sha256, "oid": file.git, "filename": name,
                "pushedAt": "2026-01-01T00:00:00.000Z", "size": len(file.data),
            }
            for commit in found.commits.values()
            for name, file in commit.files.items()
            if file.lfs and file.sha256 in self.hub.blobs
        }  # fmt: skip
        self._send(200, list(every.values()))

    def delete_lfs(self, body: bytes, repo: str) -> None:
        for sha256 in json.loads(body)["deletions"]["sha"]:
            self.hub.blobs.pop(sha256, None)
        self._send(200, {})
