"""Tiny networks and batches that the model's tests share."""

from __future__ import annotations

import layerflow  # noqa: F401  its torchvision guard comes before diffusers

# isort: split

from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

from layerflow.model.cogvideox.presets import TINY, tiny_transformer
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.presets import init_directory

SMALL: dict[str, Any] = {
    "height": 16,
    "width": 24,
    "num_frames": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "time_embed_dim": 16,
    "num_text_tokens": 8,
}


def small_transformer(seed: int = 0, noisy: bool = True, **options: Any) -> Any:
    """A two-block native network; noisy: no weight is left at zero."""
    torch.manual_seed(seed)
    model = tiny_transformer({**TINY, **SMALL, **options}, channels=27)
    if noisy:
        randomise(model, seed)
    return model.eval()


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter, so that no path is dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def small_directory(folder: Path, **options: Any) -> Path:
    """A complete tiny pipeline folder with a noisy network."""
    path = init_directory(folder, "tiny", **{**SMALL, **options})
    model = LayerFlowTransformer3DModel.from_pretrained(path / "transformer")
    randomise(model)
    model.save_pretrained(path / "transformer")
    return path


def batch(size: int = 2, frames: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """latents [B, 4, f, 27, 2, 3], prompt_embeds [B, 3, 8, 32], noise, timesteps, given."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    given = torch.zeros(size, 4, dtype=torch.bool)
    given[0, 3] = True
    return {
        "latents": randn(size, 4, frames, 27, 2, 3),
        "noise": randn(size, 4, frames, 27, 2, 3),
        "prompt_embeds": randn(size, 3, 8, 32),
        "timesteps": torch.arange(size) * 321 + 50,
        "given": given,
    }


def plain_cogvideox(rotary: bool, seed: int = 0) -> CogVideoXTransformer3DModel:
    """diffusers' network at a tiny size: 5 latent frames of 4x6, one prompt of 6 tokens."""
    torch.manual_seed(seed)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=8,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=17,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=rotary,
    )
    randomise(model, seed)
    return model.eval()
