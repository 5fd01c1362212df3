"""High dynamic range video (PQ, HLG) to the standard range that all else here works in.

Transfer functions of ITU-R BT.2100-2, the primaries' matrix of BT.2087, white at 203 cd/m2 of
BT.2408, display gamma 2.4 of BT.1886. Highlights roll off smoothly above 0.8 of white; the colour
of a pixel is scaled as a whole, so hues stay.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from layerflow.clip import U8

PQ, HLG = 16, 18  # AVColorTransferCharacteristic
WHITE = 203.0  # cd/m2
KNEE = 0.8
_BITS = 12  # of the tables' index
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)


def is_hdr(frame: Any) -> bool:
    """Whether a decoded frame says that its transfer is PQ or HLG."""
    return int(frame.color_trc or 0) in (PQ, HLG)


def to_sdr(frame: Any, converter: VideoReformatter | None = None) -> U8:
    """A decoded PQ or HLG frame -> uint8 ``[H, W, 3]``, BT.709 primaries, display gamma."""
    converted = (converter or VideoReformatter()).reformat(
        frame,
        format="rgb48le",
        src_colorspace=frame.colorspace if frame.colorspace not in (0, 2) else 9,
        src_color_range=frame.color_range or 1,
        dst_color_range=2,
        threads=1,
    )
    index = np.asarray(converted.to_ndarray(), np.uint16) >> (16 - _BITS)
    transfer = int(frame.color_trc)
    light = _light(transfer)[index]
    if transfer == HLG:  # the system gamma, for a display of 1000 cd/m2
        luma = np.maximum(light @ _LUMA_2020, 1e-6)
        light *= (1000.0 / WHITE * luma**0.2)[..., None]
    light = np.maximum(light @ _TO_BT709.T, 0.0)
    peak = light.max(-1, keepdims=True)
    over = np.maximum(peak, KNEE)
    rolled = KNEE + (1 - KNEE) * (1 - np.exp(-(over - KNEE) / (1 - KNEE)))
    light *= rolled / over
    return np.rint(255 * np.clip(light, 0, 1) ** (1 / 2.4)).astype(np.uint8)


@cache
def _light(transfer: int) -> np.ndarray:
    """Linear light of each code value, float32: in units of white (PQ), of the scene (HLG)."""
    code = np.arange(1 << _BITS, dtype=np.float64) / ((1 << _BITS) - 1)
    if transfer == PQ:
        m1, m2 = 2610 / 16384, 2523 / 32
        c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        nits = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        return (nits / WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
