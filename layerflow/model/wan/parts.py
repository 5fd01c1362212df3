"""What Wan is released with: its autoencoder's rules, its text encoder."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerflow.model.autoencoder import AutoencoderKind


def factors(config: Mapping[str, Any]) -> tuple[int, int]:
    """Pixel frames and pixels of a latent, by ``AutoencoderKLWan``'s settings."""
    return (
        int(config.get("scale_factor_temporal") or 4),
        int(config.get("scale_factor_spatial") or 8),
    )


AUTOENCODERS = {"AutoencoderKLWan": AutoencoderKind("diffusers", factors, rests=(1,))}
"""Its first latent is one frame, each other one four. It encodes other counts too, and silently
leaves frames out."""


def encode_texts(
    tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
) -> Tensor:
    """As ``Base.encode_texts``: by UMT5 with an attention mask; rows behind a text's own tokens are
    zeros, as in diffusers' ``WanPipeline``."""
    if tokenizer is None or text_encoder is None:
        raise ValueError("this model has no text encoder; pass prompt_embeds instead of prompts")
    device = text_encoder.device
    out = torch.zeros(len(texts), num_tokens, int(text_encoder.config.d_model), device=device)
    rows = [i for i, text in enumerate(texts) if text]
    if rows:
        said = tokenizer(
            [cleaned(texts[i]) for i in rows],
            padding="max_length",
            max_length=num_tokens,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        with torch.no_grad():
            encoded = text_encoder(said.input_ids, said.attention_mask).last_hidden_state
        out[rows] = encoded.float().to(device) * said.attention_mask[..., None]
    return out


def cleaned(text: str) -> str:
    """Single spaces and no HTML entities, as Wan was trained (without ftfy's repairs)."""
    return " ".join(html.unescape(html.unescape(text)).split())


def load_text(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and UMT5 of a model folder."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    return tokenizer, encoder.eval()
