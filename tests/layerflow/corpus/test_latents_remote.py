"""Latents in an object store: the same rows as of a folder here, by range, cached under a limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.corpus.remote import cache
from layerflow.corpus.remote.latents import open_latents
from layerflow.corpus.store import Store
from tests.support.trainer_kit import make_latents

pytest.importorskip("moto")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    from tests.support.s3 import s3_bucket

    with s3_bucket("latents") as system:
        yield system


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    cache.shared_cache.cache_clear()
    yield tmp_path / "cache"
    cache.shared_cache.cache_clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is read of the bucket: names and bytes."""
    seen: list[tuple[str, int]] = []
    plain = Store.read

    def read(self: Store, name: str, start: int | None = None, end: int | None = None) -> bytes:
        data = plain(self, name, start, end)
        if type(self) is Store or "_key" in vars(self):
            seen.append((name, len(data)))
        return data

    monkeypatch.setattr(Store, "read", read)
    return seen


def there(bucket: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> str:
    """Latents of a batch a row, here and in the bucket: its URL."""
    monkeypatch.setattr("layerflow.corpus.latents.BATCH_BYTES", 1)
    make_latents(folder, **more)
    url = f"s3://latents/{folder.parent.name}/{folder.name}"
    bucket.put(str(folder), url, recursive=True)
    return url


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)


@pytest.mark.parametrize("indexed", [True, False])
def test_rows_by_range_are_those_of_the_folder(
    indexed: bool, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = there(bucket, tmp_path / "l", monkeypatch, count=4, unknown=0.5, layers="rgbax2")
    if not indexed:  # of an older toolkit
        bucket.rm([f"{url}/{table}.places.arrow" for table in ("clips", "prompts")])
    here, afar = open_latents(tmp_path / "l"), open_latents(url)
    assert len(afar) == 4 and afar.identity() == here.identity()
    assert afar.prompt_keys() == here.prompt_keys() and afar.text_shape == here.text_shape
    afar.read_ahead([3, 1, 3])  # type: ignore[attr-defined]
    for row in (3, 1, 0, 2, 3):
        ours, theirs = afar.item(row), here.item(row)
        assert set(ours) == set(theirs)
        assert all(same(ours[name], theirs[name]) for name in theirs)
    assert afar.raw(2) == here.raw(2)


def test_opening_reads_no_media_and_a_row_is_read_once(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[str, int]]
) -> None:
    url = there(bucket, tmp_path / "l", monkeypatch, count=4)
    afar = open_latents(url)
    assert {name.partition("/")[0] for name, _ in reads} == {
        "fingerprint.json", "index.json", "clips.places.arrow", "prompts.places.arrow",
    }  # fmt: skip
    reads.clear()
    first = [afar.item(row)["moments"] for row in range(4)]
    clips = [name for name, _ in reads if name.startswith("clips/")]
    assert len(clips) == 4
    reads.clear()
    again = open_latents(url)
    assert all(np.array_equal(again.item(row)["moments"], first[row]) for row in range(4))
    assert not [name for name, _ in reads if "/" in name]  # all from the cache
    make_latents(tmp_path / "l2", count=4, seed=9)
    bucket.put(str(tmp_path / "l2") + "/", url, recursive=True)
    other, wanted = open_latents(url), open_latents(tmp_path / "l2")
    assert not np.array_equal(wanted.item(0)["moments"], first[0])
    assert np.array_equal(other.item(0)["moments"], wanted.item(0)["moments"])  # nothing stale


def test_the_cache_holds_no_more_than_it_may(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    url = there(bucket, tmp_path / "l", monkeypatch, count=4)
    shard = next((tmp_path / "l/clips").glob("*.arrow")).stat().st_size
    monkeypatch.setenv(cache.LIMIT, str(shard / 2 / 1e9))

    def held() -> int:
        return sum(path.stat().st_size for path in own_cache.rglob("*") if path.is_file())

    afar, here = open_latents(url), open_latents(tmp_path / "l")
    for row in range(4):
        assert np.array_equal(afar.item(row)["moments"], here.item(row)["moments"])
    assert 0 < held() <= shard / 2
    kept = {path for path in own_cache.rglob("*") if path.is_file()}
    cache.shared_cache.cache_clear()  # another process, with another store
    more = there(bucket, tmp_path / "m", monkeypatch, count=4, seed=1)
    afar = open_latents(more)
    for row in range(4):
        afar.item(row)
    assert 0 < held() <= shard / 2
    assert kept - {path for path in own_cache.rglob("*") if path.is_file()}


def test_a_shard_that_was_cut_off_or_changed_is_refused(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = there(bucket, tmp_path / "l", monkeypatch, count=3)
    (name,) = [path.name for path in (tmp_path / "l/clips").glob("*.arrow")]
    whole = bucket.cat_file(f"{url}/clips/{name}")
    bucket.pipe_file(f"{url}/clips/{name}", whole[: len(whole) - 200])
    with pytest.raises(ValueError, match="cut off"):
        open_latents(url).item(2)
    bucket.pipe_file(f"{url}/clips/{name}", whole[:200] + bytes(len(whole) - 200))
    with pytest.raises(ValueError, match="cannot be read"):
        open_latents(url).item(1)
    with pytest.raises(ValueError, match="holds no latents"):
        open_latents("s3://latents/nothing/here")
