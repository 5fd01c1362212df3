"""The latents store: what goes in comes out, row by row, and nothing half-written counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.clip import LAYERS, PROMPTED
from layerflow.corpus import latents as module
from layerflow.corpus.fingerprint import fingerprint_differences, folder_hash, model_fingerprint
from layerflow.corpus.latents import FORMAT_VERSION, Latents, LatentsWriter, clip_row, prompt_key
from layerflow.corpus.latents import prompt_row as make_prompt_row

PRINT = {"format_version": FORMAT_VERSION, "size": [32, 48]}


def row(index: int, *, dtype: str = "float32", frames: int = 3, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    moments = {
        layer: rng.standard_normal((10, frames, 4, 6)).astype(np.float32) for layer in LAYERS
    }
    columns = {
        "id": f"id{index}",
        "source": f"id{index}",
        "content": "c",
        "kind": "mined",
        "alpha_kind": "soft",
        "origin_group": "g",
        "num_frames": frames,
        "height": 32,
        "width": 48,
        "fps": 8.0,
        **{f"{layer}_prompt": prompt_key(f"{slot}, a") for slot, layer in enumerate(PROMPTED)},
    }
    return clip_row(changes.pop("moments", moments), dtype=dtype, **(columns | changes))


def prompts() -> list[dict[str, Any]]:
    return [make_prompt_row(f"{s}, a", np.full((2, 8), s + 1.0, np.float32)) for s in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> Latents:
    with LatentsWriter(path, PRINT) as writer:
        writer.clips(iter(rows))
        writer.prompts(iter(prompts()))
    return Latents.open(path)


def test_rows_come_back_exactly_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(module, "SHARD_BYTES", 60_000)
    store = write(tmp_path / "l", [row(i, frames=1 + i % 3) for i in range(30)])
    assert len(store) == 30 and len(list((tmp_path / "l/clips").iterdir())) > 2
    for index in (29, 0, 17, 16, 3):
        item = store.item(index)
        want = row(index, frames=1 + index % 3)
        assert item["moments"].shape == (4, 10, 1 + index % 3, 4, 6)
        assert item["moments"].dtype == np.float32
        for slot, layer in enumerate(LAYERS):
            assert item["moments"][slot].tobytes() == want[layer]
        assert item["id"] == f"id{index}" and item["latent_frames"] == 1 + index % 3
        assert store.raw(index) == want
    assert store.column("id") == [f"id{i}" for i in range(30)]
    with pytest.raises(IndexError):
        store.item(30)


def test_half_precision_rounds_and_says_so(tmp_path: Path) -> None:
    exact = write(tmp_path / "a", [row(0)]).item(0)["moments"]
    half = write(tmp_path / "b", [row(0, dtype="float16")]).item(0)["moments"]
    assert half.dtype == np.float32 and not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, rtol=1e-3, atol=1e-4)


def test_prompts_are_shared_and_missing_ones_are_zeros(tmp_path: Path) -> None:
    store = write(tmp_path / "l", [row(0), row(1, background_prompt="")])
    assert store.item(0)["prompt_embeds"][:, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert store.item(1)["prompt_embeds"][:, 0, 0].tolist() == [1.0, 0.0, 3.0]
    assert len(store.prompt_keys()) == 3
    assert store.prompt_text(prompt_key("1, a")) == "1, a"
    lost = write(tmp_path / "lost", [row(0, blended_prompt="nowhere")])
    with pytest.raises(ValueError, match="prompt nowhere is missing"):
        lost.item(0)


def test_an_exception_leaves_the_old_store(tmp_path: Path) -> None:
    write(tmp_path / "l", [row(0)])

    def breaks() -> Any:
        yield row(1)
        raise KeyError("boom")

    with pytest.raises(KeyError), LatentsWriter(tmp_path / "l", PRINT) as writer:
        writer.clips(breaks())
    assert Latents.open(tmp_path / "l").column("id") == ["id0"]
    assert [path.name for path in tmp_path.iterdir()] == ["l"]


def test_identity_follows_rows_and_fingerprint(tmp_path: Path) -> None:
    one = write(tmp_path / "a", [row(0)]).identity()
    assert write(tmp_path / "b", [row(0)]).identity() == one
    assert write(tmp_path / "c", [row(1)]).identity() != one
    assert write(tmp_path / "d", [row(0, content="other")]).identity() != one


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    odd = {layer: np.zeros((10, 1, 4, 6), np.float32) for layer in LAYERS}
    with pytest.raises(ValueError, match="one shape for all layers"):
        row(0, moments=odd | {"alpha": np.zeros((10, 2, 4, 6), np.float32)})
    with pytest.raises(ValueError, match="not all finite"):
        row(0, moments=odd | {"alpha": np.full((10, 1, 4, 6), 1e6)}, dtype="float16")
    with pytest.raises(ValueError, match="dtype must be"):
        row(0, dtype="bfloat16")
    with pytest.raises(ValueError, match="needs \\['alpha_kind'"):
        clip_row(odd, id="x")
    with pytest.raises(ValueError, match="holds no latents"):
        Latents.open(tmp_path)
    store = write(tmp_path / "l", [row(0)])
    (store.path / "fingerprint.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="format 99"):
        Latents.open(store.path)


def test_a_cut_shard_and_a_path_that_leads_out_are_errors(tmp_path: Path) -> None:
    store = write(tmp_path / "l", [row(i) for i in range(3)])
    shard = next((store.path / "clips").iterdir())
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        Latents.open(store.path)
    write(tmp_path / "l", [row(0)])
    index = json.loads((store.path / "index.json").read_text())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.arrow").write_bytes(b"x")
    index["clips"] = ["../../outside/secret.arrow"]
    (store.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"l/outside/secret.arrow cannot be read"):
        Latents.open(store.path)


def test_component_hashes_follow_weights_and_settings(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    with pytest.raises(ValueError, match="empty or absent"):
        folder_hash(folder)
    (folder / "w.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text('{"_version": "1", "bands": 3}')
    first = folder_hash(folder)
    (folder / "config.json").write_text('{"bands": 3, "_version": "2"}')
    assert folder_hash(folder) == first
    (folder / "config.json").write_text('{"bands": 4}')
    assert folder_hash(folder) != first
    with pytest.raises(ValueError, match="no model directory"):
        model_fingerprint(tmp_path)


def test_differences_name_the_field() -> None:
    assert fingerprint_differences({"a": 1, "b": 2, "more": 3}, {"a": 1, "b": 2}) == []
    assert fingerprint_differences({"a": 1}, {"a": 2}) == ["a: 1 there, 2 now"]
