"""Latents written to an object store are those of a folder here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerflow.corpus.latents import INDEX, Latents
from layerflow.corpus.remote import writer
from layerflow.corpus.remote.latents import open_latents
from layerflow.corpus.store import Store
from layerflow.corpus.table import SCHEMA
from layerflow.corpus.writer import write_table
from layerflow.model.presets import init_directory
from pipelines.encode import job as module
from pipelines.encode.drawn import run_encode_of
from pipelines.encode.job import run_encode
from tests.support.corpora import make_rows
from tests.support.pasted import backdrops, stills

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto", reason="needs the extra dev")
BUCKET = "latents"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    from tests.support.s3 import s3_bucket

    with s3_bucket(BUCKET) as system:
        yield system


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_directory(tmp_path_factory.mktemp("tiny") / "model", "tiny")


def corpus(path: Path, count: int) -> Path:
    write_table(path, make_rows(count), SCHEMA)
    return path


def content(latents: Latents) -> tuple[Any, ...]:
    rows = [latents.raw(index) for index in range(len(latents))]
    return latents.fingerprint, rows, list(latents.prompt_rows()), latents.identity()


def encode(corpora: Path, model: Path, out: Path | str, **more: Any) -> Any:
    how: dict[str, Any] = {"size": (32, 40), "frames": 4, "workers": 0, "quiet": True} | more
    return run_encode([corpora], model=model, out=out, **how)


def test_a_bucket_gets_the_latents_of_a_folder_and_only_what_is_missing_later(
    bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several shards; then a clip goes and two come: nothing that stays is encoded again, and no
    shard of before is left."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    monkeypatch.setattr("layerflow.corpus.latents.BATCH_BYTES", 1)
    there, here = f"s3://{BUCKET}/grown", tmp_path / "here"
    few, more = corpus(tmp_path / "few", 3), corpus(tmp_path / "more", 5)
    with monkeypatch.context() as patch:
        patch.delattr(writer.RemoteLatentsWriter, "clips")  # workers make the shards of new latents
        for out in (there, here):
            assert encode(few, model, out).encoded == 3
    assert content(open_latents(there)) == content(Latents.open(here))
    assert len(Store(there).names("clips")) == 3
    again = encode(few, model, there)
    assert (again.out, again.clips, again.encoded) == (there, 3, 0)
    assert again.shapes() == {"32x40x1": 1, "32x40x4": 2}
    for out in (there, here):
        done = encode(more, model, out)
        assert (done.clips, done.encoded) == (5, 2)
    for out in (there, here):
        assert encode(few, model, out).encoded == 0
    assert content(open_latents(there)) == content(Latents.open(here))
    names = {name.partition("/")[0] for name in Store(there).names()}
    places = {name for name in names if name.endswith(".places.arrow")}
    assert names - places == {"clips", "prompts", "fingerprint.json", INDEX} and len(places) == 2
    assert len(Store(there).names("clips")) == 3


def test_encoding_into_a_bucket_that_was_cut_off_goes_on(
    bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in the middle of the units, once while the shards are put."""
    monkeypatch.setattr(module, "UNIT_ROWS", 1)
    out, source = f"s3://{BUCKET}/cut", corpus(tmp_path / "c", 3)
    real, seen = module.Encoder.clip, list[str]()

    def stops(self: Any, row: Any, about: Any) -> Any:
        seen.append(row["id"])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(self, row, about)

    monkeypatch.setattr(module.Encoder, "clip", stops)
    with pytest.raises(KeyboardInterrupt):
        encode(source, model, out)
    put = Store.put_file

    def cut(self: Store, name: str, path: Path) -> None:
        put(self, name, path)
        if str(self).endswith("/clips"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_file", cut)
        with pytest.raises(KeyboardInterrupt):
            encode(source, model, out)
    with pytest.raises(ValueError, match="holds no latents"):
        open_latents(out)
    assert encode(source, model, out).clips == 3
    assert len(seen) == 4 and len(set(seen)) == 3
    encode(source, model, tmp_path / "here")
    assert content(open_latents(out)) == content(Latents.open(tmp_path / "here"))
    assert not Store(out).names("staging")


def test_what_else_lies_there_and_other_latents_are_refused(
    bucket: Any, model: Path, tmp_path: Path
) -> None:
    source, out = corpus(tmp_path / "c", 2), f"s3://{BUCKET}/refused"
    Store(out).put("thesis.txt", b"mine")
    with pytest.raises(ValueError, match=r"holds no latents \(no fingerprint.json\)"):
        encode(source, model, out)
    assert Store(out).names() == {"thesis.txt": 4}
    other = f"s3://{BUCKET}/other"
    encode(source, model, other)
    with pytest.raises(ValueError, match="frames: 'even:4' there"):
        encode(source, model, other, frames=3)
    with pytest.raises(ValueError, match="not to URLs"):
        encode(source, model, "https://example.org/latents")


def test_drawn_clips_are_encoded_into_a_bucket_too(
    bucket: Any, model: Path, tmp_path: Path
) -> None:
    said = {
        "job": "paste",
        "foregrounds": [str(stills(tmp_path / "fg"))],
        "backgrounds": [str(backdrops(tmp_path / "bg"))],
        "out": "unused",
        "count": 3,
        "seed": 3,
        "size": "48x64",
        "frames": 2,
    }
    path = tmp_path / "corpus.yaml"
    path.write_text(yaml.safe_dump({"jobs": [said]}))
    there, here = f"s3://{BUCKET}/drawn", tmp_path / "here"
    for out in (there, here):
        assert run_encode_of([], path, {}, model=model, out=out, workers=0, quiet=True).clips == 3
    assert content(open_latents(there)) == content(Latents.open(here))
    for name in ("drawn.json", "origins.jsonl"):
        assert Store(there).read(name) == (here / name).read_bytes()
    again = run_encode_of([], path, {}, model=model, out=there, workers=0, quiet=True)
    assert (again.clips, again.encoded) == (3, 0)
    with pytest.raises(ValueError, match="clips of other draws"):
        run_encode_of([], path, {"seed": 4}, model=model, out=there, workers=0, quiet=True)
