"""Trains a manifest and dies of SIGKILL in the middle of a step: `killed_run.py MANIFEST CALL`.

CALL is the forward pass, counted in this process, before which rank 0 kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from manifests.train import load
from trainer import loop


def main() -> None:
    manifest, last = load(sys.argv[1]), int(sys.argv[2])
    real, calls = loop.layer_loss, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    loop.layer_loss = counted
    loop.train(manifest, manifest.out)


if __name__ == "__main__":
    main()
