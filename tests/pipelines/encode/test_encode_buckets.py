"""Encode at several sizes: which bucket a clip gets, and what the store then holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.clip import LayeredClip, composite, resize_clip
from layerflow.corpus.latents import Latents, LatentsWriter
from layerflow.corpus.table import SCHEMA, decode_row, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.model.autoencoder import BlockDCTAutoencoder, encode_clips
from layerflow.model.presets import init_directory
from pipelines.encode.buckets import Bucket, choose_bucket, parse_buckets
from pipelines.encode.clip_latents import Augment
from pipelines.encode.job import run_encode
from pipelines.view.page import write_report

WIDE, TALL, LONG, SMALL = "32x48x4", "48x32x4", "32x48x8", "16x16x2"


def row(index: int, height: int, width: int, frames: int, kind: str = "pasted") -> dict[str, Any]:
    rng = np.random.default_rng(index)
    small = rng.integers(0, 255, (2, frames, height // 8, width // 8, 3), dtype=np.uint8)
    colours = small.repeat(8, 2).repeat(8, 3)
    alpha = np.zeros((frames, height, width), np.uint8)
    alpha[:, 8:24, 4:20] = 255
    clip = LayeredClip(
        foreground=colours[0],
        alpha=alpha,
        background=colours[1],
        blended=composite(colours[0], alpha, colours[1]),
        prompts={"foreground": "thing", "background": "place", "blended": ""},
        kind=kind,
    )
    source = origin(f"v{index}.mp4", f"{index:064x}")
    return encode_row(clip, id=f"{index:016x}", origin=source, quality={}, recipe="r")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_directory(tmp_path_factory.mktemp("tiny") / "model", "tiny")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [(32, 48, 8), (40, 64, 5), (64, 40, 8), (32, 48, 1), (24, 24, 3), (8, 48, 8)]
    path = tmp_path_factory.mktemp("corpus") / "clips"
    rows = [
        row(i, *size, kind="image" if size[2] == 1 else "pasted") for i, size in enumerate(sizes)
    ]
    write_table(path, rows, SCHEMA)
    return path


def test_a_clip_gets_the_nearest_aspect_then_the_largest_then_the_longest_that_it_fills() -> None:
    buckets = parse_buckets("480x720x16,720x480x16,240x360x16,480x720x48,512x512x16")

    def chosen(height: int, width: int, frames: int | None) -> str:
        return str(choose_bucket(buckets, (height, width), frames))

    assert chosen(720, 1280, 48) == "480x720x48"  # 0.56 is nearer 0.67 than 1
    assert chosen(720, 1280, 47) == "480x720x16"
    assert chosen(480, 720, 16) == "480x720x16"  # exactly
    assert chosen(479, 720, 16) == "240x360x16"  # not enlarged by a line
    assert chosen(1280, 720, 16) == "720x480x16"
    assert chosen(1280, 720, None) == "720x480x16"  # a still
    assert chosen(480, 720, None) == "480x720x48"
    assert chosen(600, 600, 99) == "512x512x16"
    assert chosen(500, 500, 99) == "240x360x16"  # its own aspect is larger than it
    assert choose_bucket(buckets, (480, 720), 15) is None
    assert choose_bucket(buckets, (239, 4000), None) is None
    pair = parse_buckets("40x80x4,80x40x4")
    assert choose_bucket(pair, (100, 100), 4) == Bucket(80, 40, 4)  # equally near: the taller one
    assert choose_bucket(pair[::-1], (100, 100), 4) == Bucket(80, 40, 4)


def test_a_store_holds_each_clip_at_its_buckets_size_and_the_rest_is_refused(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    said = ",".join((WIDE, TALL, LONG, SMALL))
    summary = run_encode([clips], model=model, out=tmp_path / "l", buckets=said, workers=0)
    store = Latents.open(tmp_path / "l")
    columns = [store.column(name) for name in ("height", "width", "num_frames")]
    shapes = ["x".join(map(str, shape)) for shape in zip(*columns, strict=True)]
    assert shapes == [LONG, WIDE, TALL, "32x48x1", SMALL]
    assert summary.shapes() == dict.fromkeys(
        ("16x16x2", "32x48x1", "32x48x4", "32x48x8", "48x32x4"), 1
    )
    assert [store.item(i)["moments"].shape[2:] for i in (0, 2)] == [(8, 4, 6), (4, 6, 4)]
    ((refused, reason),) = summary.rejected
    assert refused == f"{5:016x}" and "of 8x48x8 fills none of the buckets 16x16x2, " in reason
    vae = BlockDCTAutoencoder.from_pretrained(model / "vae")
    source = decode_row(row(2, 64, 40, 8)).take([1, 3, 5, 7])  # every second of 8, scaled to cover
    with torch.no_grad():
        want = encode_clips(vae, [resize_clip(source, 48, 32)])[0]
    np.testing.assert_allclose(store.item(2)["moments"], want, atol=1e-5)


def test_validate_stats_view_and_datasets_open_a_store_of_several_sizes(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    out, runner = tmp_path / "l", CliRunner()
    run_encode([clips], model=model, out=out, buckets=f"{WIDE},{TALL},{SMALL}", workers=0)

    def said(*command: str, status: int = 0) -> Any:
        done = runner.invoke(build_app(), [*command, str(out), "--json"])
        assert done.exit_code == status, done.output
        return json.loads(done.stdout)

    assert said("validate") == {"rows": 5, "problems": []}
    found = said("stats")
    assert found["rows"] == 5 and found["kinds"] == {"image": 1, "pasted": 4}
    channels = Latents.open(out).item(0)["moments"].shape[1] // 2
    assert found["sizes"] == {
        f"16x16x2, latents {channels}x2x2x2": 1,
        f"32x48x1, latents {channels}x1x4x6": 1,
        f"32x48x4, latents {channels}x4x4x6": 2,
        f"48x32x4, latents {channels}x4x6x4": 1,
    }
    assert "48x32x4" in runner.invoke(build_app(), ["stats", str(out)]).stdout
    data = pytest.importorskip("datasets")
    table = data.load_from_disk(str(out / "clips"))
    want = Latents.open(out).item(2)["moments"][1]
    cell = table[2][Latents.open(out).layers.layers[1]]
    np.testing.assert_array_equal(np.frombuffer(cell, "<f4").reshape(want.shape), want)
    assert len(data.load_from_disk(str(out / "prompts"))) == found["prompts"]
    written = write_report(out, tmp_path / "page.html", model=model, workers=0)
    assert [path.is_file() for path in written] == [True, True]

    have = Latents.open(out)
    rows, layer = [have.raw(0), have.raw(0)], have.layers.layers[0]
    rows[1][layer] = np.full(len(rows[1][layer]) // 4, np.nan, np.float32).tobytes()
    for prompts, faults in (
        (list(have.prompt_rows()), [(1, "comes twice"), (1, "moments are not all finite")]),
        ([], [(0, "is missing"), (1, "comes twice"), (1, "is missing")]),
    ):
        with LatentsWriter(out, have.fingerprint) as writer:
            writer.clips(rows)
            writer.prompts(prompts)
        problems = said("validate", status=1)["problems"]
        assert [problem["row"] for problem in problems] == [row for row, _ in faults]
        assert all(w in p["what"] for p, (_, w) in zip(problems, faults, strict=True))


def test_a_second_run_does_nothing_and_other_buckets_are_refused_by_name(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "l", f"{WIDE},{TALL}"
    assert run_encode([clips], model=model, out=out, buckets=said, workers=0).encoded == 4
    wanted = run_encode([clips], model=model, out=out, buckets=f"{TALL},{WIDE}", workers=0)
    assert [id_ for id_, _ in wanted.rejected] == [f"{4:016x}", f"{5:016x}"]
    with pytest.raises(ValueError, match=r"buckets: \['32x48x4', '48x32x4'\] there, \[\] now"):
        run_encode([clips], model=model, out=out, workers=0)
    with pytest.raises(ValueError, match=r"buckets: .* there, \['32x48x4'\] now"):
        run_encode([clips], model=model, out=out, buckets=WIDE, workers=0)


def test_frames_that_stand_still_choose_by_size_alone(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    augment = Augment(freeze=2, flip=True)
    said = f"32x48x99,{TALL}"
    summary = run_encode(
        [clips], model=model, out=tmp_path / "l", buckets=said, augment=augment, workers=0
    )
    assert summary.shapes() == {"32x48x1": 2 * 4 + 2, "48x32x1": 4}


def test_wrong_buckets_are_errors_before_any_work(model: Path, clips: Path, tmp_path: Path) -> None:
    def refused(buckets: str, match: str, **more: Any) -> None:
        with pytest.raises(ValueError, match=match):
            run_encode([clips], model=model, out=tmp_path / "l", buckets=buckets, workers=0, **more)
        assert not (tmp_path / "l").exists()

    refused("480x720", "HEIGHTxWIDTHxFRAMES")
    refused("32x48x0", "HEIGHTxWIDTHxFRAMES")
    refused("32x48x4,32x48x4", "must be one or more and differ")
    refused("32x44x4", "multiples of 8")
    refused(WIDE, "leave --size and --frames out", frames=4)
