"""Effects: what a foreground casts on the background, as a layer with its own colour and alpha.

Two pictures are known, the background B with the effects and the plate P without them; sought are
colour E and alpha a with ``a E + (1 - a) P = B``. A shadow takes a share of all light: E is black,
and a is the share that fits B best by least squares. Where black misses, as a reflection, tinted
light or a part of the foreground that its matte lacks does, a is the least alpha for which some E
inside the range of levels gives B exactly, so that as much of the plate as possible shows through.
"""

from __future__ import annotations

import cv2
import numpy as np

from layerflow.clip import F32, U8, from_level

SURE = 4.0  # levels: decoded pictures of the same thing differ by as much
BLACK = 3.0  # levels by which a black layer may miss


def effects_of(plate: U8, background: U8) -> tuple[U8, U8]:
    """Colour uint8 ``[T, H, W, 3]`` and alpha uint8 ``[T, H, W]`` of what lies on ``plate``.

    ``plate``, ``background``: uint8 ``[T, H, W, 3]``. Alpha is 0 where they differ by less than
    ``SURE`` in the mean of 3x3 pixels, and the colour black there.
    """
    colour, alpha = np.zeros_like(plate), np.zeros(plate.shape[:3], np.uint8)
    for t, (clear, shaded) in enumerate(zip(plate, background, strict=True)):
        apart = np.abs(clear.astype(np.float32) - shaded).max(-1)
        lies = cv2.blur(apart, (3, 3)) >= SURE
        colour[t][lies], alpha[t][lies] = _solved(
            clear[lies].astype(np.float32), shaded[lies].astype(np.float32)
        )
    return colour, alpha


def _solved(clear: F32, shaded: F32) -> tuple[U8, U8]:
    """Colour ``[N, 3]`` and alpha ``[N]`` of pixels ``[N, 3]``, in levels."""
    power = np.maximum((clear * clear).sum(-1), 1.0)
    share = np.clip(1.0 - (clear * shaded).sum(-1) / power, 0.0, 1.0)
    missed = np.abs((1.0 - share)[:, None] * clear - shaded).max(-1) > BLACK
    room = np.where(shaded < clear, clear, 255.0 - clear)
    least = (np.abs(shaded - clear) / np.maximum(room, 1.0)).max(-1)
    # Rounded up: the colour is solved for the alpha that is stored.
    alpha = np.where(missed, np.minimum(np.ceil(least * 255.0), 255.0), np.rint(share * 255.0))
    a = np.maximum(alpha, 1.0)[:, None] / np.float32(255.0)
    colour = np.where(missed[:, None], (shaded - (1.0 - a) * clear) / a, 0.0)
    return from_level(np.clip(colour, 0.0, 255.0)), alpha.astype(np.uint8)
