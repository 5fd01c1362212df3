"""``ray job submit`` of a training, as the documents give it, to a cluster of one node."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import ROOT
from tests.support.trainer_kit import weights
from tests.support.training_runs import losses, one_stage
from trainer.distributed.launch import launch

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
SECONDS = 240
TOKEN = secrets.token_hex(32)  # a cluster with a job server asks for one


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


@contextmanager
def cluster(log: Path) -> Iterator[str]:
    """A head node with its job server on ports and in a folder of its own; the server's address.

    ``ray stop`` would end every Ray process of the machine, so the node stays a child of this
    process and only its group is ended.
    """
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=3"]
        command += ["--include-dashboard=true", "--node-ip-address=127.0.0.1"]
        command += [f"--temp-dir={folder}", f"--object-store-memory={80 << 20}"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        with log.open("w") as out, subprocess.Popen(
            command, env=environment(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        ) as head:  # fmt: skip
            try:
                address = f"http://127.0.0.1:{ports['dashboard-port']}"
                until = time.monotonic() + 120
                while not ask(f"{address}/api/version"):
                    assert head.poll() is None and time.monotonic() < until, log.read_text()
                    time.sleep(0.5)
                yield address
            finally:
                head.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    head.wait(5)  # it would drain for half a minute
                with suppress(ProcessLookupError):
                    os.killpg(head.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**kept, **own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def ask(url: str) -> Any:
    """What the job server answers; None while there is none."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


def documented() -> str:
    """The command of docs/train.md, which docs/cluster.md gives for a corpus in the same words."""
    (found,) = re.findall(r"`(ray job submit [^`]*layerflow train[^`]*)`", read("train.md"))
    (other,) = re.findall(r"^ +(ray job submit .*)$", read("cluster.md"), re.MULTILINE)
    assert found.split(" -- ")[0] == other.split(" -- ")[0]
    return str(found)


def read(name: str) -> str:
    return (DOCS / name).read_text()


def test_the_documented_job_trains(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp_cors", reason="needs ray[default]: the extra jobs")
    whole = one_stage(tmp_path, "whole", 12)
    assert launch(whole, log=lambda line: None)
    sent = one_stage(tmp_path, "sent", 12)
    (tmp_path / "train.yaml").write_text(sent.model_dump_json())
    with cluster(tmp_path / "ray.log") as address:
        text = documented().replace("http://HEAD:8265", address)
        words = shlex.split(text.replace("/data/train.yaml", str(tmp_path / "train.yaml")))
        assert address in words and str(tmp_path / "train.yaml") in words
        words[words.index("--workers") + 1] = "2"
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "succeeded" in said, said[-3000:]
        (job,) = ask(f"{address}/api/jobs/")
    assert job["status"] == "SUCCEEDED"
    assert job["entrypoint"] == f"layerflow train {tmp_path}/train.yaml --workers 2"
    assert losses(sent.out) == pytest.approx(losses(whole.out), rel=1e-5)
    expected = weights(tmp_path / "whole/export")
    torch.testing.assert_close(weights(tmp_path / "sent/export"), expected, rtol=1e-3, atol=1e-5)
