"""Folders with a small random ViTMatte."""

from __future__ import annotations

from pathlib import Path

from layerflow.compat import ensure_torchvision


def write_vitmatte(folder: Path, sure: float | None = None) -> Path:
    """A random network of transformers' ViTMatte; with ``sure`` it answers that logit anywhere."""
    ensure_torchvision()
    import torch
    from transformers import (
        VitDetConfig,
        VitMatteConfig,
        VitMatteForImageMatting,
        VitMatteImageProcessor,
    )

    backbone = VitDetConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_channels=4,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        out_features=["stage2"],
    )
    config = VitMatteConfig(
        backbone_config=backbone,
        hidden_size=8,
        convstream_hidden_sizes=[4, 8, 8],
        fusion_hidden_sizes=[8, 8, 4, 4],
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VitMatteForImageMatting(config).eval()
        head = model.decoder.matting_head.matting_convs[-1]
        torch.nn.init.normal_(head.weight, std=0.0 if sure is not None else 1.0)
        torch.nn.init.constant_(head.bias, sure or 0.0)
    model.save_pretrained(folder)
    VitMatteImageProcessor().save_pretrained(folder)
    return folder
