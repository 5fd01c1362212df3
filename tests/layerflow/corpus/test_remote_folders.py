"""A folder of an object store on this machine: fetched once, again when it has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.remote import cache
from layerflow.corpus.remote.folders import brought
from layerflow.corpus.store import Store

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto", reason="needs the extra dev")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    from tests.support.s3 import s3_bucket

    with s3_bucket("models") as system:
        yield system


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of files as they are fetched, into an empty cache."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    cache.shared_cache.cache_clear()
    names: list[str] = []
    get = Store.get_file

    def noted(store: Store, name: str, target: Path) -> None:
        names.append(name)
        get(store, name, target)

    monkeypatch.setattr(Store, "get_file", noted)
    yield names
    cache.shared_cache.cache_clear()


def test_a_folder_is_brought_once_and_again_when_it_has_changed(
    bucket: Any, fetched: list[str], tmp_path: Path
) -> None:
    bucket.pipe_file("models/one/vae/config.json", b"{}")
    bucket.pipe_file("models/one/weights", b"1234")
    url = "s3://models/one/"
    here = brought(url)
    assert (here / "vae/config.json").read_bytes() == b"{}"
    assert brought(url) == here and fetched == ["vae/config.json", "weights"]
    bucket.pipe_file("models/one/weights", b"4321")  # as long as before
    changed = brought(url)
    assert changed != here and (changed / "weights").read_bytes() == b"4321"
    assert (here / "weights").read_bytes() == b"1234", "another process may still use it"


def test_local_folders_stay_and_absent_ones_are_said(
    bucket: Any, fetched: list[str], tmp_path: Path
) -> None:
    assert brought(tmp_path) == tmp_path and brought("models/tiny") == Path("models/tiny")
    with pytest.raises(ValueError, match="s3://models/none is empty, or not there"):
        brought("s3://models/none")
    assert fetched == []


def test_a_copy_that_fails_leaves_nothing(
    bucket: Any, fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.pipe_file("models/half/a", b"1")

    def full(store: Store, name: str, target: Path) -> None:
        target.write_bytes(b"1")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "get_file", full)
        with pytest.raises(OSError, match="No space"):
            brought("s3://models/half")
    left = [path for path in (tmp_path / "cache-folders").iterdir() if path.suffix != ".lock"]
    assert left == []
    assert (brought("s3://models/half") / "a").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/out"])
def test_names_that_lead_out_are_refused(
    name: str, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "stamps", lambda store: {name: "1"})
    with pytest.raises(ValueError, match="leads out of the folder"):
        brought("s3://models/evil")
    assert fetched == []
