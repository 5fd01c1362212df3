"""The packets of a film: when each frame is shown, and where decoding may start.

A seek is only as good as the container's index, and its time stamps may jump. So every packet is
looked at once, in order; from then on a packet is known by its place in the file, and a frame by
its packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from layerflow.container import may_jump
from layerflow.media import MediaError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NONE = np.iinfo(np.int64).min  # a time stamp that is not there
GAP, LONG_GAP = 10.0, 3600.0  # seconds; a longer gap is a splice (the first: broadcast containers)
BACK = 1.0  # seconds that a time stamp may fall back inside one take
KEY_CODECS = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "h263", "flv1"}
    | {"theora", "ffv1", "mjpeg", "prores", "dnxhd", "dvvideo", "cfhd", "huffyuv", "ffvhuff"}
    | {"utvideo", "magicyuv", "rawvideo", "png", "jpeg2000"}
)
"""Codecs in which nothing that is shown after a key frame can refer to what came before it."""


@dataclass(frozen=True)
class Packets:
    """A video stream's packets in decoding order (P) and its frames in the order shown (N)."""

    times: F64
    """``[N]`` seconds of each frame, rising; splices are closed up. 0 is the first one's."""
    order: I64
    """``[N]`` the packet of each frame."""
    rank: I64
    """``[P]`` the frame of each packet; -1 for one that is hidden by an edit list."""
    take: I64
    """``[P]`` number of the take: it grows by one at every splice."""
    starts: I64
    """Packets at which decoding may start, rising; the first of each take is among them."""
    stamped: bool
    """Whether every packet says when it is shown. If not, frames are counted from the start."""
    identity: I64
    """``[P, 4]`` place in the file, bytes, time stamps of presentation and decoding in ticks."""

    @property
    def count(self) -> int:
        return len(self.rank)

    def find(self, packet: Any) -> int | None:
        """Which one a packet is that a demuxer gives after a seek; None if that is not certain."""
        own = _identity(packet)
        same = (self.identity[:, :2] == own[:2]).all(1)
        found = np.flatnonzero(same)
        if len(found) > 1 or own[0] < 0:
            found = np.flatnonzero(same & (self.identity[:, 2:] == own[2:]).all(1))
        return int(found[0]) if len(found) == 1 else None

    def is_at(self, packet: Any, place: int) -> bool:
        """Whether a packet is the one at ``place``."""
        if place >= self.count:
            return False
        pos, size = self.identity[place, :2]
        return bool(size == packet.size and pos == (-1 if packet.pos is None else packet.pos))

    def starts_for(self, frame: int) -> list[int]:
        """Packets to start decoding at for a frame, the best first, the first of its take last."""
        place = int(self.order[frame])
        first = int(np.searchsorted(self.take, self.take[place]))
        starts = self.starts[(self.starts >= first) & (self.starts <= place)]
        shown = self.rank[starts]
        before = [int(s) for s in starts[(shown >= 0) & (shown <= frame) & (starts > first)]]
        return [*before[:-3:-1], first]


def _identity(packet: Any) -> I64:
    pos = -1 if packet.pos is None else packet.pos
    pts = NONE if packet.pts is None else packet.pts
    dts = NONE if packet.dts is None else packet.dts
    return np.array((pos, packet.size, pts, dts), np.int64)


def read_packets(container: Any, stream: Any, max_frames: int) -> Packets:
    """All packets of a stream that was just opened; what cannot be read any more is left out.

    Raises MediaError when there is none, or more than ``max_frames``.
    """
    codec = stream.codec_context.codec.canonical_name
    nal_bytes = _nal_length(codec, bytes(stream.codec_context.extradata or b""))
    rows: list[I64] = []
    shown: list[bool] = []
    keys: list[int] = []
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.is_keyframe and may_start(codec, packet, nal_bytes):
                keys.append(len(rows))
            rows.append(_identity(packet))
            shown.append(not packet.is_discard and not (codec == "vp8" and _unseen(packet)))
            if len(rows) > max_frames:
                raise MediaError(f"more than {max_frames} frames")
    except av.error.FFmpegError:
        pass  # a file that is cut off keeps what came before the cut
    if not any(shown):
        raise MediaError("the video stream holds no frame")
    return _arranged(stream, np.stack(rows), np.array(shown), keys, may_jump(container))


def _arranged(
    stream: Any, identity: I64, shown: NDArray[np.bool_], keys: list[int], discontinuous: bool
) -> Packets:
    tick = float(stream.time_base)
    pts, dts = identity[:, 2], identity[:, 3]
    stamped = bool((pts[shown] != NONE).all())
    stamps = np.where(pts != NONE, pts, dts)
    if (stamps[shown] == NONE).any():
        period = 1 / (float(stream.average_rate or stream.guessed_rate or 25) * tick)
        stamps = np.rint(np.arange(len(stamps)) * period).astype(np.int64)
    clock = np.where(dts != NONE, dts, stamps) if stamped else stamps
    is_key = np.zeros(len(clock), bool)
    is_key[keys] = True
    take = _takes(clock, is_key, tick, GAP if discontinuous else LONG_GAP)
    order = np.lexsort((stamps, take))
    order = order[shown[order]]
    rank = np.full(len(stamps), -1, np.int64)
    rank[order] = np.arange(len(order))
    heads = [int(np.searchsorted(take, number)) for number in range(take[-1] + 1)]
    starts = np.unique(np.array([*heads, *(keys if stamped else [])], np.int64))
    times = _times(stamps[order] * tick, take[order])
    return Packets(times, order, rank, take, starts, stamped, identity)


def _takes(clock: I64, is_key: NDArray[np.bool_], tick: float, gap: float) -> I64:
    known = np.flatnonzero(clock != NONE)
    steps = np.diff(clock[known]) * tick
    jumps = (steps > gap) | (steps < -BACK) | ((steps < 0) & is_key[known[1:]])
    take = np.zeros(len(clock), np.int64)
    take[known[1:][jumps]] = 1
    return np.cumsum(take)


def _times(stamps: F64, take: I64) -> F64:
    """Seconds from the first frame; each take goes on one frame's time after the one before."""
    out = np.empty(len(stamps))
    now = 0.0
    for number in np.unique(take):
        inside = take == number
        own = stamps[inside] - stamps[inside][0]
        out[inside] = now + own
        steps = np.diff(own)
        period = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.04
        now = float(out[inside][-1]) + period
    return out


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


def _unseen(packet: Any) -> bool:
    """Whether a VP8 packet is a reference that is never shown."""
    return not memoryview(packet)[0] & 16


def _nal_length(codec: str, extradata: bytes) -> int:
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
