"""The three-stage trainer: plain torch in loop.py, Ray in launch.py."""

from __future__ import annotations

import layerflow  # noqa: F401  (installs the torchvision guard in every worker)
from layerflow.process.heap import keep_freed_memory
from layerflow.process.threads import wait_asleep

wait_asleep()  # here, since every process that trains comes by before it loads torch
keep_freed_memory()
