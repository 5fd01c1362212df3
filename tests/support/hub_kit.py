"""A process that publishes to a double of the Hub and loads from it, and what to ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.hub_double import TOKEN, Fault, Hub

CLIENT = Path(__file__).with_name("hub_client.py")


def environment(hub: Hub, home: Path, token: str = TOKEN) -> dict[str, str]:
    """Of a process whose Hub is the double."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
        "PYTHONPATH": str(ROOT),
    }


class Client:
    """A process that publishes and loads; see ``hub_client``."""

    def __init__(self, hub: Hub, home: Path, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CLIENT)],
            env=environment(hub, home) | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def call(self, request: dict[str, Any]) -> Any:
        self.ask(request)
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def publication(corpus: Path, repo_id: str, **options: Any) -> dict[str, Any]:
    own = ("batch", "how", "switch", "work")
    more = {name: options.pop(name) for name in own if name in options}
    shard = options.pop("shard", 10_000)
    about = {"options": {"repo_id": repo_id, **options}, "shard": shard, **more}
    return {"publish": str(corpus), **about}


def shards(hub: Hub, repo_id: str, folder: str = "data") -> list[str]:
    return sorted(name for name in hub.files(repo_id) if name.startswith(f"{folder}/"))


def kill_and_restart(
    hub: Hub, client: Client, home: Path, request: dict[str, Any], method: str, path: str, skip: int
) -> list[str]:
    """Kill a publication when the ``skip``-th such call has been answered and the next one came;
    start it again. Returns what the second run said; no complete blob may be sent twice."""
    hub.blobs.clear()
    hub.uploads.clear()
    hub.block.clear()
    hub.blocked.clear()
    hub.faults[:] = [Fault(method, path, "none", times=skip), Fault(method, path, "hang")]
    victim = Client(hub, home)
    victim.ask(request)
    assert hub.blocked.wait(120), hub.calls[-5:]
    victim.close()
    hub.block.set()
    before = dict(hub.uploads)
    assert len(hub.repos[request["options"]["repo_id"]].commits) == 1  # nothing is half there
    lines: list[str] = client.call(request)
    assert all(hub.uploads[oid] == count for oid, count in before.items())
    assert set(hub.uploads.values()) == {1}
    return lines
