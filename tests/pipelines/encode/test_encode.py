"""Encode: corpus to latents, incrementally, and refused when foreign."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layerflow.clip import LAYERS, LayeredClip, composite, resize_clip
from layerflow.corpus.latents import Latents
from layerflow.corpus.table import SCHEMA, Corpus, decode_row, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.media.layer_stack import stack_of
from layerflow.model.autoencoder import BlockDCTAutoencoder, decode_layers, encode_clips
from layerflow.model.presets import init_directory
from pipelines.encode import job as module
from pipelines.encode import wanted
from pipelines.encode.clip_latents import (
    Augment,
    Options,
    Variant,
    crop_window,
    decode,
    even_frames,
    vary,
)
from pipelines.encode.job import run_encode
from pipelines.encode.models import Models
from tests.support.staged_damage import DAMAGE, play


def make_clip(index: int, *, frames: int = 8, kind: str = "pasted") -> LayeredClip:
    rng = np.random.default_rng(index)
    height, width = 40, 48
    small = rng.integers(0, 255, (2, frames, 5, 6, 3), dtype=np.uint8)
    colours = small.repeat(8, 2).repeat(8, 3)
    alpha = np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        alpha[t, 8:24, 4 + 2 * t : 20 + 2 * t] = 255
    return LayeredClip(
        foreground=colours[0],
        alpha=alpha,
        background=colours[1],
        blended=composite(colours[0], alpha, colours[1]),
        prompts={"foreground": f"thing {index % 2}", "background": "place", "blended": ""},
        kind=kind,
    )


def row(index: int, **options: Any) -> dict[str, Any]:
    clip = make_clip(index, **options)
    source = origin(f"v{index}.mp4", f"{index // 2:064x}")
    return encode_row(clip, id=f"{index:016x}", origin=source, quality={}, recipe="r")


def corpus(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_table(path, rows, SCHEMA)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_directory(tmp_path_factory.mktemp("tiny") / "model", "tiny")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row(0), row(1), row(2, frames=1, kind="image")]
    return corpus(tmp_path_factory.mktemp("corpus") / "clips", rows)


def encode(corpora: list[Path], model: Path, out: Path, **options: Any) -> module.EncodeSummary:
    defaults = {"size": (32, 40), "frames": 4, "workers": 0, "quiet": True}
    return run_encode(corpora, model=model, out=out, **(defaults | options))


def test_latents_are_those_of_the_autoencoder(model: Path, clips: Path, tmp_path: Path) -> None:
    summary = encode([clips], model, tmp_path / "l")
    assert (summary.clips, summary.encoded, summary.rejected) == (3, 3, [])
    assert summary.prompts == 3  # thing 0, thing 1, place; empty ones are not encoded
    store = Latents.open(tmp_path / "l")
    assert store.column("kind") == ["pasted", "pasted", "image"]
    assert store.column("latent_frames") == [4, 4, 1]
    assert store.column("fps") == [4.0, 4.0, 8.0]
    groups = store.column("origin_group")
    assert groups[0] == groups[1] != groups[2]
    vae = BlockDCTAutoencoder.from_pretrained(model / "vae")
    stored = decode_row(row(1))
    want = encode_clips(vae, [resize_clip(stored.take([1, 3, 5, 7]), 32, 40)])[0]
    item = store.item(1)
    np.testing.assert_allclose(item["moments"], want, atol=1e-5)
    latents = torch.from_numpy(item["moments"][:, :27]).transpose(1, 2)
    alpha = decode_layers(vae, latents)["alpha"].mean(-1) > 0
    truth = resize_clip(stored.take([1, 3, 5, 7]), 32, 40).alpha > 127
    assert (alpha == truth).mean() > 0.95
    embeds = store.item(0)["prompt_embeds"]
    assert embeds.shape == (3, 16, 32) and (embeds[2] == 0).all() and (embeds[0] != 0).any()


def test_partial_decoding_equals_the_whole(clips: Path) -> None:
    for kept in (None, 3):
        source = row(0)
        whole = decode_row(source)
        part = decode(source, kept)
        chosen = whole if kept is None else whole.take(even_frames(8, 3))
        for layer in LAYERS:
            assert (part.layer(layer) == chosen.layer(layer)).all()
    assert even_frames(16, 4) == [2, 6, 10, 14]
    assert even_frames(5, 5) == [0, 1, 2, 3, 4] and len(set(even_frames(7, 6))) == 6


def test_a_second_run_does_nothing_and_a_changed_clip_is_done_again(
    model: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "l"
    encode([clips], model, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.arrow")}
    assert encode([clips], model, out).encoded == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.arrow")} == before
    seen: list[str] = []
    real = module.Encoder.clip

    def counted(self: Any, source: Any, about: Any) -> Any:
        seen.append(source["id"])
        return real(self, source, about)

    monkeypatch.setattr(module.Encoder, "clip", counted)
    recaptioned = row(1) | {"blended_prompt": "both"}
    other = corpus(tmp_path / "other", [row(3), recaptioned, row(0)])
    old = Latents.open(out)
    summary = encode([other], model, out)
    assert seen == [f"{3:016x}"]  # of a new prompt no picture is encoded
    assert (summary.encoded, summary.corrected) == (1, 1)
    store = Latents.open(out)
    assert store.column("source") == [f"{i:016x}" for i in (3, 1, 0)]
    assert (store.item(2)["moments"] == old.item(0)["moments"]).all()
    assert store.prompt_text(store.item(1)["prompts"]["blended"]) == "2, both"
    assert len(store.prompt_keys()) == summary.prompts == 4
    seen.clear()
    repainted = row(1) | {"kind": "mined", "blended": row(2)["blended"], "blended_prompt": "both"}
    summary = encode([corpus(tmp_path / "third", [row(3), repainted])], model, out)
    assert seen == [f"{1:016x}"] and summary.corrected == 0


def test_whoever_plans_reads_no_media(
    model: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes of media are what workers find, and where nothing is there yet nobody asks for them
    before the clips are encoded."""
    asked: list[Sequence[str] | None] = []
    hashed: list[int] = []
    read, hash_unit = Corpus.rows, wanted.hash_unit

    def rows(self: Any, columns: Sequence[str] | None = None) -> Any:
        asked.append(columns)
        return read(self, columns)

    def counted(unit: Any) -> Any:
        hashed.append(len(unit["rows"]))
        return hash_unit(unit)

    monkeypatch.setattr(Corpus, "rows", rows)
    monkeypatch.setattr(wanted, "hash_unit", counted)
    encode([clips], model, tmp_path / "l")
    assert hashed == []
    assert encode([clips], model, tmp_path / "l").encoded == 0
    assert hashed == [len(Corpus.open(clips))]
    assert asked and all(columns and not set(columns) & {*LAYERS, "known"} for columns in asked)


def test_a_killed_job_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(tmp_path / "clips", [row(i) for i in range(4)])
    monkeypatch.setattr(module, "UNIT_ROWS", 1)
    real = module.encode_unit
    done: list[str] = []

    def dies(unit: Any, *, options: Any) -> Any:
        if unit["kind"] == "clips":
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(unit["rows"][0]["id"])
        return real(unit, options=options)

    monkeypatch.setattr(module, "encode_unit", dies)
    with pytest.raises(KeyboardInterrupt):
        encode([source], model, tmp_path / "l")
    assert not (tmp_path / "l").exists()
    again: list[str] = []

    def counted(unit: Any, *, options: Any) -> Any:
        again.append(unit["kind"])
        return real(unit, options=options)

    monkeypatch.setattr(module, "encode_unit", counted)
    assert encode([source], model, tmp_path / "l").clips == 4
    assert again == ["clips", "clips"]
    monkeypatch.undo()
    encode([source], model, tmp_path / "whole")
    assert Latents.open(tmp_path / "l").identity() == Latents.open(tmp_path / "whole").identity()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("while_running", [False, True], ids=["between runs", "while running"])
@pytest.mark.parametrize(
    "name", ["a byte of the rows flipped", "the rows cut off", "the unit gone"]
)
def test_a_damaged_unit_is_encoded_again(
    name: str,
    while_running: bool,
    model: Path,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "UNIT_ROWS", 1)
    real = module.encode_unit
    seen: list[str] = []

    def damages(unit: Any, *, options: Any) -> Any:
        seen.append(unit["kind"])
        if seen == ["prompts", "clips", "clips", "clips"]:
            folder = tmp_path / ".l.staging"
            there = [path for path in folder.iterdir() if path.is_dir()]
            first = min(there, key=lambda path: path.stat().st_ctime_ns)
            DAMAGE[name](first)
            if not while_running:
                raise KeyboardInterrupt
        return real(unit, options=options)

    monkeypatch.setattr(module, "encode_unit", damages)
    if not while_running:
        with pytest.raises(KeyboardInterrupt):
            encode([clips], model, tmp_path / "l")
        encode([clips], model, tmp_path / "l")
        assert sorted(seen[4:]) == ["clips", "prompts"]
    else:
        encode([clips], model, tmp_path / "l")
        assert seen[4:] == ["prompts"]
    monkeypatch.undo()
    encode([clips], model, tmp_path / "whole")
    made, whole = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.arrow")}
        for n in ("l", "whole")
    )
    assert made == whole and len(whole) >= 2


def test_clips_that_are_lost_alike_stop_the_job_unless_that_is_accepted(
    model: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNIT_ROWS", 1)
    real = module.encode_unit

    def fails(unit: Any, *, options: Any) -> Any:
        if unit["kind"] == "clips" and unit["rows"][0]["id"] != f"{1:016x}":
            raise RuntimeError("no kernel image for this device")
        return real(unit, options=options)

    monkeypatch.setattr(module, "encode_unit", fails)
    play(monkeypatch, lambda item, run: run(item))
    other = corpus(tmp_path / "more", [row(i) for i in range(3, 6)])
    with pytest.raises(OSError, match=r"5 of 7 units were lost .*no kernel image.*--accept-lost"):
        encode([clips, other], model, tmp_path / "l", workers=2)
    assert not (tmp_path / "l").exists()
    summary = encode([clips, other], model, tmp_path / "l", workers=2, accept_lost=True)
    assert summary.clips == 1 and len(summary.rejected) == 5


def test_foreign_latents_are_refused_by_name(model: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "l"
    encode([clips], model, out)
    with pytest.raises(ValueError, match=r"frames: 'even:4' there, 'even:2' now"):
        encode([clips], model, out, frames=2)
    with pytest.raises(ValueError, match=r"size: \[32, 40\] there, \[32, 32\] now"):
        encode([clips], model, out, size=(32, 32))
    other = init_directory(tmp_path / "other", "tiny", luma_bands=10, seed=3)
    with pytest.raises(ValueError, match=r"vae: '.*' there") as refused:
        encode([clips], other, out)
    assert "text_encoder" in str(refused.value) and "tokenizer" not in str(refused.value)
    (tmp_path / "else").mkdir()
    (tmp_path / "else/file").write_text("mine")
    with pytest.raises(ValueError, match="holds no latents"):
        encode([clips], model, tmp_path / "else")
    assert (tmp_path / "else/file").read_text() == "mine"


def test_bad_clips_are_rejected_and_the_job_goes_on(model: Path, tmp_path: Path) -> None:
    torn = row(1)
    torn["alpha"] = torn["alpha"][:60]
    source = corpus(tmp_path / "c", [row(0), torn, row(2, frames=3)])
    summary = encode([source], model, tmp_path / "l")
    assert summary.clips == 1
    reasons = dict(summary.rejected)
    assert "cannot be read" in reasons[f"{1:016x}"]
    assert "has 3 frames, 4 are asked for" in reasons[f"{2:016x}"]
    assert (tmp_path / "l/rejected.jsonl").read_text().count("\n") == 2
    only_bad = corpus(tmp_path / "bad", [row(2, frames=3)])
    with pytest.raises(ValueError, match=r"nothing could be encoded.*3 frames"):
        encode([only_bad], model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_wrong_requests_are_errors_before_any_work(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        encode([clips], model, tmp_path / "l", size=(30, 40))
    with pytest.raises(ValueError, match="more than once"):
        encode([clips, clips], model, tmp_path / "l")
    with pytest.raises(ValueError, match="no model directory"):
        encode([clips], tmp_path, tmp_path / "l")
    with pytest.raises(ValueError, match="holds no corpus"):
        encode([tmp_path], model, tmp_path / "l")
    with pytest.raises(ValueError, match="no clips"):
        encode([corpus(tmp_path / "empty", [])], model, tmp_path / "l")


def test_variants_multiply_and_stay_layered(model: Path, clips: Path, tmp_path: Path) -> None:
    augment = Augment(flip=True, reverse=True, crops=1)
    summary = encode([clips], model, tmp_path / "l", augment=augment)
    assert summary.clips == 8 + 8 + 4  # a still is not reversed
    store = Latents.open(tmp_path / "l")
    ids = store.column("id")
    base = f"{0:016x}"
    suffixes = ["", "-r", "-f", "-f-r", "-c1", "-c1-r", "-c1-f", "-c1-f-r"]
    assert ids[:8] == [base + suffix for suffix in suffixes]
    plain = store.item(0)["moments"]
    np.testing.assert_allclose(store.item(1)["moments"], plain[:, :, ::-1], atol=1e-5)
    assert len({store.item(i)["moments"].tobytes() for i in range(len(store))}) == 20
    assert encode([clips], model, tmp_path / "l", augment=augment).encoded == 0
    fewer = encode([clips], model, tmp_path / "l", augment=Augment(flip=True))
    assert (fewer.clips, fewer.encoded) == (6, 0)


def test_frozen_frames_are_stills_of_the_clip(model: Path, clips: Path, tmp_path: Path) -> None:
    summary = encode([clips], model, tmp_path / "l", augment=Augment(freeze=2, reverse=True))
    assert summary.clips == 2 + 2 + 1
    store = Latents.open(tmp_path / "l")
    assert store.column("latent_frames") == [1] * 5 and store.column("num_frames") == [1] * 5
    assert store.column("id")[:2] == [f"{0:016x}-s1", f"{0:016x}-s2"]
    assert store.column("kind") == ["pasted"] * 4 + ["image"]
    encode([clips], model, tmp_path / "moving", frames=None)
    moving = Latents.open(tmp_path / "moving").item(0)["moments"]
    still = store.item(0)["moments"][:, :, 0]
    gaps = [np.abs(moving[:, :, t] - still).max() for t in range(8)]
    assert min(gaps) < 1e-5 < sorted(gaps)[1]


def test_a_variant_changes_all_layers_alike() -> None:
    clip = stack_of(make_clip(0))
    for variant in (Variant(flip=True), Variant(reverse=True), Variant(crop=2), Variant(crop=1)):
        changed = vary(clip, variant, clip.size, 0.5, "id")
        assert changed.size == clip.size
        again = changed.recomposed()
        assert np.abs(again.astype(int) - changed.layer("blended")).mean() < 3
    same, twin, other = (
        vary(clip, Variant(crop=n), clip.size, 0.5, "id").layer("blended") for n in (1, 1, 2)
    )
    assert (same == twin).all() and (same != other).any()


def test_crop_windows_keep_the_aspect_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left, height, width = crop_window((60, 90), (32, 32), 0.5, rng.random(3).tolist())
        assert 0 <= top <= 60 - height and 0 <= left <= 90 - width
        assert height == width and 30 <= height <= 60
    assert crop_window((60, 90), (30, 45), 1.0, [0.0, 0.9, 0.9]) == (0, 0, 60, 90)


@pytest.mark.slow
def test_ray_gives_the_same_rows_as_one_process(model: Path, clips: Path, tmp_path: Path) -> None:
    encode([clips], model, tmp_path / "one")
    encode([clips], model, tmp_path / "ray", workers=2)
    one, many = Latents.open(tmp_path / "one"), Latents.open(tmp_path / "ray")
    assert one.identity() == many.identity()
    assert all((one.item(i)["moments"] == many.item(i)["moments"]).all() for i in range(3))


def test_a_narrower_precision_is_near_and_asks_for_a_folder_of_its_own(
    model: Path, clips: Path, tmp_path: Path
) -> None:
    encode([clips], model, tmp_path / "wide")
    encode([clips], model, tmp_path / "narrow", compute=("bfloat16", False))
    wide, narrow = (Latents.open(tmp_path / name).item(1) for name in ("wide", "narrow"))
    a, b = (item["moments"][:, :27] for item in (wide, narrow))
    assert 0 < np.abs(a - b).mean() < 0.02 * np.abs(a).mean()
    for folder, compute, said in (
        ("wide", ("bfloat16", False), "precision: 'float32' there"),
        ("narrow", ("float32", False), "precision: 'bfloat16' there"),
        ("wide", ("float32", True), "tiling: False there"),
    ):
        with pytest.raises(ValueError, match=said):
            encode([clips], model, tmp_path / folder, compute=compute)


def test_text_encoder_and_autoencoder_are_not_held_at_once(model: Path) -> None:
    models = Models(Options(str(model)))
    assert models.vae is not None and models.text is not None
    assert "vae" not in models.__dict__ and "text" in models.__dict__
    assert models.vae is not None and "text" not in models.__dict__
