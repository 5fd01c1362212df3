"""What the bits of a video packet say, where the container's word is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KEY_CODECS = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "h263", "flv1"}
    | {"theora", "ffv1", "mjpeg", "prores", "dnxhd", "dvvideo", "cfhd", "huffyuv", "ffvhuff"}
    | {"utvideo", "magicyuv", "rawvideo", "png", "jpeg2000"}
)
"""Codecs in which nothing that is shown after a key frame can refer to what came before it."""


def may_start(codec: str, packet: Any, nal_bytes: int) -> bool:
    """Whether decoding from a key packet on is exact for all that is shown after it.

    H.264 also marks packets as keys from which the picture only recovers in the course of time
    (intra refresh): its own bits decide, as they do for HEVC.
    """
    if codec == "h264":
        return _h264_starts(bytes(packet), nal_bytes)
    if codec == "hevc":
        first = next((n[0] >> 1 & 63 for n in _nals(bytes(packet), nal_bytes) if n[0] < 64), None)
        return first is not None and 16 <= first <= 21  # a picture that may be accessed at random
    return codec in KEY_CODECS


def is_shown(codec: str, packet: Any) -> bool:
    """Whether a packet has a frame to show: not one that an edit list hides, or a mere reference.

    VP8 alone keeps references that are never shown in packets of their own.
    """
    return not packet.is_discard and (codec != "vp8" or bool(memoryview(packet)[0] & 16))


def mpeg_order(packet: Any) -> tuple[bool, int]:
    """Of an MPEG-1 or MPEG-2 packet: whether it opens a group, and its place as shown in there."""
    data = bytes(packet)
    picture = data.find(b"\0\0\1\0")
    if not 0 <= picture < len(data) - 5:
        return False, -1
    opens = 0 <= data.find(b"\0\0\1\xb8") < picture
    return opens, data[picture + 4] << 2 | data[picture + 5] >> 6


def nal_length(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit; 0 where start codes divide them."""
    if (len(extradata) < 23 and codec == "hevc") or len(extradata) < 7 or extradata[0] != 1:
        return 0
    return (extradata[21 if codec == "hevc" else 4] & 3) + 1


def _nals(data: bytes, nal_bytes: int) -> Iterator[bytes]:
    """The NAL units of a packet, none of them empty."""
    if nal_bytes:
        place = 0
        while place + nal_bytes < len(data):
            end = place + nal_bytes + int.from_bytes(data[place : place + nal_bytes], "big")
            if place + nal_bytes < end:
                yield data[place + nal_bytes : end]
            place = max(end, place + nal_bytes)
        return
    place = data.find(b"\0\0\1")
    while place >= 0:
        following = data.find(b"\0\0\1", place + 3)
        unit = data[place + 3 : following if following >= 0 else len(data)]
        if unit:
            yield unit
        place = following


def _h264_starts(data: bytes, nal_bytes: int) -> bool:
    recovers = False
    for unit in _nals(data, nal_bytes):
        kind = unit[0] & 31
        if kind in (1, 2, 5):
            return kind == 5 or recovers  # IDR, or an I picture that says that it is as good
        if kind == 6:
            recovers = recovers or _recovers_at_once(unit[1:].replace(b"\0\0\3", b"\0\0"))
    return False


def _recovers_at_once(sei: bytes) -> bool:
    """Whether a SEI message has a recovery point of no frames that promises an exact match."""
    place = 0
    while place + 2 < len(sei):
        kind = size = 0
        while place < len(sei) and sei[place] == 255:
            kind, place = kind + 255, place + 1
        kind += sei[place] if place < len(sei) else 0
        place += 1
        while place < len(sei) and sei[place] == 255:
            size, place = size + 255, place + 1
        size += sei[place] if place < len(sei) else 0
        place += 1
        if kind == 6 and place < len(sei):
            return sei[place] & 0xC0 == 0xC0
        place += size
    return False
