"""What several tests share: made media, small networks, doubles of servers, runs to kill."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that is tested."""
