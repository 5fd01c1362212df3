"""What CogVideoX is released with: its autoencoder's rules, its text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerflow.model.autoencoder import AutoencoderKind


def factors(config: Mapping[str, Any]) -> tuple[int, int]:
    """Pixel frames and pixels of a latent, by ``AutoencoderKLCogVideoX``' settings."""
    blocks = config.get("block_out_channels", (0,) * 4)
    return int(config.get("temporal_compression_ratio", 4)), int(2 ** (len(blocks) - 1))


AUTOENCODERS = {
    "AutoencoderKLCogVideoX": AutoencoderKind("diffusers", factors, chunk=2, rests=(0, 1)),
}
"""It works in chunks of two latent frames, the first of which may have one more."""


def encode_texts(
    tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
) -> Tensor:
    """As ``Base.encode_texts``: by T5, padded to a fixed length and without an attention mask, as
    the official code does (``sgm/modules/encoders/modules.py``)."""
    if tokenizer is None or text_encoder is None:
        raise ValueError("this model has no text encoder; pass prompt_embeds instead of prompts")
    width = int(text_encoder.config.d_model)
    device = text_encoder.device
    out = torch.zeros(len(texts), num_tokens, width, device=device)
    rows = [i for i, text in enumerate(texts) if text]
    if rows:
        tokens = tokenizer(
            [texts[i] for i in rows],
            padding="max_length",
            max_length=num_tokens,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            out[rows] = text_encoder(tokens.to(device))[0].float().to(device)
    return out


def load_text(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and T5 of a model folder."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    return tokenizer, encoder.eval()
