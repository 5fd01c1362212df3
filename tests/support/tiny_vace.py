"""Folders with a small random Wan VACE pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path

Z = 4  # channels of a latent


def write_vace(folder: Path) -> Path:
    """Network, autoencoder with Wan's factors (4 frames, 8 x 8 pixels), text encoder, scheduler."""
    import torch
    from diffusers import AutoencoderKLWan, WanVACEPipeline, WanVACETransformer3DModel
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    from layerflow.model.wan.from_base import make_scheduler

    tokenizer = ByT5Tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2
            )
        )
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=Z,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * Z,
            latents_std=[1.0] * Z,
        )
        network = WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=Z,
            out_channels=Z,
            text_dim=8,
            freq_dim=16,
            ffn_dim=16,
            num_layers=2,
            vace_layers=[0],
            vace_in_channels=2 * Z + 64,  # what is kept, what is not, and the mask's 8 x 8 pixels
        )
    scheduler = make_scheduler("unipc")
    WanVACEPipeline(tokenizer, text, vae, scheduler, network).save_pretrained(folder)
    return folder
