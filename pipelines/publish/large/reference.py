"""A branch of the Hub moved to another commit: one step, however many files differ.

The Hub's API has no call for it, but every repository is a git server, and a push that brings no
new object is one request of git's protocol (gitprotocol-http, gitprotocol-pack): the old and the
new commit, and a pack of nothing. The server compares the old one itself, so that of two that move
a branch at once one is told.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from pipelines.publish.calls import steadily

if TYPE_CHECKING:
    from pipelines.publish.repository import Repository

SERVICE = "git-receive-pack"
EMPTY_PACK = b"PACK" + (2).to_bytes(4, "big") + (0).to_bytes(4, "big")
COMMIT = re.compile(r"[0-9a-f]{40}")
LENGTH = re.compile(rb"[0-9a-fA-F]{4}")


def move_branch(repository: Repository, branch: str, old: str, new: str) -> bool:
    """Move a branch from one commit to one that follows it and is there already; False where the
    server does not do it, for whatever reason. Network errors as of ``Repository``."""
    from huggingface_hub import get_session, get_token

    if not (COMMIT.fullmatch(old) and COMMIT.fullmatch(new)):
        return False
    api = repository.api
    url = f"{api.endpoint}/datasets/{repository.repo_id}.git/{SERVICE}"
    kind = f"application/x-{SERVICE}"
    answer = steadily(
        get_session().post,
        url,
        content=request(branch, old, new),
        headers={"Content-Type": f"{kind}-request", "Accept": f"{kind}-result"},
        auth=(repository.repo_id.partition("/")[0], get_token() or ""),
    )
    return answer.status_code == 200 and accepted(answer.content, branch)


def request(branch: str, old: str, new: str) -> bytes:
    """The body of the push."""
    line = f"{old} {new} refs/heads/{branch}\0 report-status".encode()
    pack = EMPTY_PACK + hashlib.sha1(EMPTY_PACK).digest()
    return f"{len(line) + 4:04x}".encode() + line + b"0000" + pack


def accepted(body: bytes, branch: str) -> bool:
    """Whether a report says that the branch was moved."""
    lines, place = [], 0
    while place + 4 <= len(body):
        head = body[place : place + 4]
        if not LENGTH.fullmatch(head):
            return False  # no report
        size = int(head, 16)
        lines.append(body[place + 4 : place + size].strip())
        place += max(4, size)
    return b"unpack ok" in lines and f"ok refs/heads/{branch}".encode() in lines
