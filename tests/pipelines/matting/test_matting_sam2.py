"""The backend on video segmentation networks, with a tiny random one of SAM 2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from layerflow.compat import ensure_torchvision
from pipelines.matting import Matte, make_backend
from pipelines.matting.follow import key_frame
from pipelines.matting.sam2 import Sam2Matting

SIDE, HIDDEN = 64, 128  # the memory's 64 channels are fixed in the network; it wants more here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ensure_torchvision()
    import torch
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        window_size_per_stage=[8, 8, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=HIDDEN,
    )
    prompt = {"hidden_size": HIDDEN, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": HIDDEN, "mlp_dim": 32, "num_attention_heads": 2}
    memory = {f"memory_attention_{name}": value for name, value in {
        "hidden_size": HIDDEN, "num_layers": 1, "feed_forward_hidden_size": 32,
        "rope_feat_sizes": [4, 4],
    }.items()}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sam2VideoModel(
            Sam2VideoConfig(
                image_size=SIDE,
                vision_config=vision,
                prompt_encoder_config=prompt,
                mask_decoder_config=decoder | {"iou_head_hidden_dim": 16},
                memory_encoder_hidden_size=HIDDEN,
                memory_encoder_output_channels=64,
                mask_downsampler_embed_dim=HIDDEN,
                memory_fuser_embed_dim=HIDDEN,
                memory_fuser_intermediate_dim=32,
                **memory,
            )
        )
    path = tmp_path_factory.mktemp("sam2")
    model.save_pretrained(path)
    return path


class Finder:
    """Says that the subject is a box, of another size on each frame; or that there is none."""

    name, version, licence, needs = "box", "1", "", frozenset[str]()

    def __init__(self, *widths: int) -> None:
        self.widths = widths

    def __call__(self, frames: np.ndarray, backdrop: object = None) -> Matte:
        alpha = np.zeros(frames.shape[:3], np.float32)
        for t, width in enumerate(self.widths):
            alpha[t, 8:32, 8 : 8 + width] = 1
        return Matte(alpha, {"matte_confidence": 0.9, "matte_agreement": 0.8, "motion_vote": 0.7})


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), dtype=np.uint8)


def test_the_network_is_shown_one_frame_and_answers_on_all_before_and_after(folder: Path) -> None:
    """On the frame of the prompt its answer is the prompt itself, at the network's resolution."""
    clip, backend = frames(5), Sam2Matting(folder, finder=Finder(16, 16, 32, 40, 48))
    mask = Finder(16, 16, 32, 40, 48)(clip).alpha >= 0.5
    answer = backend.tracker.follow(clip, mask[2], 2)
    assert answer.shape == (5, 48, 64) and answer.dtype == np.float32
    inside = answer[2] >= 0.5
    assert (inside & mask[2]).sum() / (inside | mask[2]).sum() > 0.9
    for t in (0, 1, 3, 4):
        assert answer[t].min() > 0 and not np.allclose(answer[t], answer[2])
    assert np.array_equal(
        answer, backend.tracker.follow(clip, mask[2], 2)
    )  # nothing is kept of a clip


def test_confidence_is_the_finders_less_what_the_two_disagree_on(folder: Path) -> None:
    clip, finder = frames(3), Finder(24, 24, 24)
    matte = Sam2Matting(folder, finder=finder)(clip)
    inside, mask = matte.alpha >= 0.5, finder(clip).alpha >= 0.5
    vote = (inside & mask).sum() / max(1, (inside | mask).sum())
    assert 0 < vote < 1
    assert matte.confidence["matte_agreement"] == pytest.approx(0.8 * vote)
    assert matte.confidence["matte_confidence"] <= vote
    assert matte.confidence["motion_vote"] == 0.7


def test_where_nothing_is_found_nothing_is_followed(folder: Path) -> None:
    matte = Sam2Matting(folder, finder=Finder())(frames(2))
    assert not matte.alpha.any()


def test_the_prompt_is_the_frame_of_median_size_nearest_the_middle() -> None:
    sizes = [0, 9, 5, 2, 5, 0, 30]  # with a subject: 9, 5, 2, 5, 30, of median 5
    mask = np.zeros((len(sizes), 6, 6), bool)
    for t, size in enumerate(sizes):
        mask[t].flat[:size] = True
    assert key_frame(mask) == 2  # as far from the middle, 3, as the other one; the first of them


def test_other_weights_are_refused_with_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --weights FOLDER"):
        make_backend("sam2")
    with pytest.raises(ValueError, match="not found"):
        make_backend("sam2", weights=tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="holds a 't5'; 'sam2' takes one of sam2_video"):
        make_backend("sam2", weights=tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle would be opened here")
    with pytest.raises(ValueError, match="does not load as sam2_video"):
        make_backend("sam2", weights=tmp_path)
