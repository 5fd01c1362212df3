"""A network that stands for LaMa."""

from __future__ import annotations

import torch


class MeanOfTheRest(torch.nn.Module):
    """Stands for LaMa: the hole becomes the mean colour of what is not hole."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert image.shape[2] % 8 == 0 and image.shape[3] % 8 == 0
        free = 1 - mask
        mean = (image * free).sum((2, 3), keepdim=True) / free.sum((2, 3), keepdim=True)
        return image * free + mean * mask
