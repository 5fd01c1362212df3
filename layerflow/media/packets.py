"""The packets of a video: when each frame is shown, and where decoding may start.

A seek is only as good as the container's index, and its time stamps may jump. So every packet is
looked at once, in order; from then on a packet is known by its place in the file, and a frame by
its packet.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from layerflow.media.bitstream import is_shown, may_start, mpeg_order, nal_length
from layerflow.media.cells import MediaError
from layerflow.media.container import may_jump

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NONE = np.iinfo(np.int64).min  # a time stamp that is not there
GAP, LONG_GAP = 10.0, 3600.0  # seconds; a longer gap is a splice (the first: if stamps may jump)
BACK = 1.0  # seconds that a time stamp may fall back without a splice where they should not jump


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
    """``[P]`` number of the take: it grows by one at every splice and where data were lost."""
    starts: I64
    """Packets at which decoding may start, rising; the first of each take is among them."""
    stamped: bool
    """Whether every packet says when it is shown. If not, frames are counted from the start."""
    identity: I64
    """``[P, 4]`` place in the file, bytes, time stamps of presentation and decoding in ticks."""

    @property
    def count(self) -> int:
        return len(self.rank)

    @property
    def end(self) -> int:
        """Where in the file the last packet ends; 0 where places are unknown."""
        known = self.identity[self.identity[:, 0] >= 0]
        return int(known[:, :2].sum(1).max()) if len(known) else 0

    def find(self, packet: Any) -> int | None:
        """Which one a packet is that a demuxer gives after a seek; None if that is not certain."""
        own = np.array(_identity(packet), np.int64)
        same = (self.identity[:, :2] == own[:2]).all(1)
        found = np.flatnonzero(same)
        if len(found) > 1 or own[0] < 0:
            found = np.flatnonzero(same & (self.identity[:, 2:] == own[2:]).all(1))
        return int(found[0]) if len(found) == 1 else None

    def is_at(self, packet: Any, place: int) -> bool:
        """Whether a packet is the one at ``place``."""
        return place < self.count and _identity(packet)[:2] == tuple(self.identity[place, :2])

    def starts_for(self, frame: int) -> list[int]:
        """Packets to start decoding at for a frame, the best first, the first of its take last."""
        place = int(self.order[frame])
        first = int(np.searchsorted(self.take, self.take[place]))
        starts = self.starts[(self.starts >= first) & (self.starts <= place)]
        shown = self.rank[starts]
        before = [int(s) for s in starts[(shown >= 0) & (shown <= frame) & (starts > first)]]
        return [*before[:-3:-1], first]


def _identity(packet: Any) -> tuple[int, int, int, int]:
    pos = -1 if packet.pos is None else packet.pos
    pts = NONE if packet.pts is None else packet.pts
    dts = NONE if packet.dts is None else packet.dts
    return pos, packet.size, pts, dts


@dataclass
class _Read:
    """What is noted of packets while they are read."""

    identity: array[int] = field(default_factory=lambda: array("q"))
    shown: list[bool] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    in_group: list[int] = field(default_factory=list)


def demuxed(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, to the end of the file. Raises FFmpegError where it is damaged."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except IndexError:
        return  # PyAV at the end of a file in which a stream appeared that was not announced


def read_packets(container: Any, stream: Any, max_frames: int) -> Packets:
    """All packets of a stream that was just opened; what cannot be read any more is left out.

    Raises MediaError when there is none, or more than ``max_frames``.
    """
    codec = stream.codec_context.codec.canonical_name
    nal_bytes = nal_length(codec, bytes(stream.codec_context.extradata or b""))
    read = _Read()
    jumps = may_jump(container)
    try:
        for packet in demuxed(container, stream):
            if packet.is_keyframe and may_start(codec, packet, nal_bytes):
                read.keys.append(len(read.shown))
            if jumps and packet.is_corrupt:
                read.lost.append(len(read.shown))
            if jumps and codec in ("mpeg1video", "mpeg2video"):
                opens, place = mpeg_order(packet)
                read.group.append(opens)
                read.in_group.append(place)
            read.identity.extend(_identity(packet))
            read.shown.append(is_shown(codec, packet))
            if len(read.shown) > max_frames:
                raise MediaError(f"more than {max_frames} frames")
    except av.error.FFmpegError:
        pass  # a file that is cut off keeps what came before the cut
    if not any(read.shown):
        raise MediaError("the video stream holds no frame")
    return _arranged(read, stream, jumps, _has_decoding_times(container, stream, read))


def _has_decoding_times(container: Any, stream: Any, read: _Read) -> bool:
    """Whether the stamps are those of decoding, in a stream whose frames may be shown in another
    order: AVI has no others, nor has a codec that Matroska only wraps from there. ASF and MXF may
    have no others either; then they never fall although frames change places.
    """
    context, name = stream.codec_context, container.format.name
    if name in ("asf", "mxf"):
        stamps = read.identity[2::4]
        return bool(context.has_b_frames) and all(a <= b for a, b in itertools.pairwise(stamps))
    if name != "avi" and not ("matroska" in name and str(context.codec_tag).strip("\0") != ""):
        return False
    reordered = ("h264", "hevc", "vc1", "wmv3", "mpeg2video")
    return bool(context.has_b_frames) or context.codec.canonical_name in reordered


def _arranged(read: _Read, stream: Any, may_jump: bool, decoding_times: bool) -> Packets:
    tick = float(stream.time_base)
    identity = np.array(read.identity, np.int64).reshape(-1, 4)
    shown = np.array(read.shown)
    pts, dts = identity[:, 2], identity[:, 3]
    stamps = np.where(pts != NONE, pts, dts)
    clock = np.where(dts != NONE, dts, pts)
    ticking = dts if (dts != NONE).mean() > 0.5 else clock  # two kinds of stamps would fall back
    if (stamps[shown] == NONE).any():
        period = 1 / (float(stream.average_rate or stream.guessed_rate or 25) * tick)
        stamps = clock = ticking = np.rint(np.arange(len(stamps)) * period).astype(np.int64)
    # A packet without a place shares a header with others: its stamps are FFmpeg's guess.
    guessed = may_jump and bool((identity[shown, 0] < 0).any())
    stamped = bool((pts[shown] != NONE).all()) and not guessed and not decoding_times
    splices = _jumps(ticking, read.keys, tick, may_jump, guessed)
    cuts = splices.copy()
    # Up to two packets before a splice one is called corrupt, but only for the counter's jump.
    cuts[[k for k in read.lost if not splices[k + 1 : k + 3].any()]] = True
    take, stretch = np.cumsum(cuts, dtype=np.int64), np.cumsum(splices, dtype=np.int64)
    display = stamps
    if guessed and (known := _display_order(read)) is not None:
        display, stamped = known, True
    order = np.lexsort((display, take))
    order = order[shown[order]]
    rank = np.full(len(stamps), -1, np.int64)
    rank[order] = np.arange(len(order))
    heads = np.flatnonzero(np.diff(take, prepend=-1))
    starts = np.union1d(heads, np.array(read.keys if stamped else [], np.int64))
    counted = guessed or not stamped
    times = _times((clock if counted else stamps)[order] * tick, stretch[order], counted)
    return Packets(times, order, rank, take, starts, stamped, identity)


def _display_order(read: _Read) -> I64 | None:
    """``[P]`` numbers that rise as frames are shown, by the pictures' own; None without those."""
    if not read.group:
        return None
    group, place = np.cumsum(read.group, dtype=np.int64), np.array(read.in_group, np.int64)
    headless = group == 0  # before the first group: not decodable, so that any order will do
    place[headless] = np.arange(int(headless.sum()))
    order = group << 20 | place
    return order if place.min() >= 0 and len(np.unique(order)) == len(order) else None


def _jumps(
    clock: I64, keys: list[int], tick: float, may_jump: bool, guessed: bool
) -> NDArray[np.bool_]:
    """``[P]`` whether a packet's time does not go on from that of the one before."""
    known = np.flatnonzero(clock != NONE)
    steps = np.diff(clock[known]) * tick
    back = steps < -BACK
    if not guessed:
        is_key = np.zeros(len(clock), bool)
        is_key[keys] = True
        back |= (steps < 0) & (is_key[known[1:]] | may_jump)
    out = np.zeros(len(clock), bool)
    out[known[1:]] = back | (steps > (GAP if may_jump else LONG_GAP))
    return out


def _times(stamps: F64, stretch: I64, guessed: bool) -> F64:
    """Seconds from the first frame; after a jump they go on one frame's time later.

    guessed: the stamps are not each their own frame's. In order they are times all the same; where
    some are missing and others twice, frames are evenly spaced.
    """
    out = np.empty(len(stamps))
    now = 0.0
    for number in np.unique(stretch):
        inside = stretch == number
        own = stamps[inside] - stamps[inside].min()
        own = np.sort(own) if guessed else own
        steps = np.diff(np.sort(own))
        period = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.04
        if guessed and (steps <= 0).any():
            own = np.arange(len(own)) * period
        out[inside] = now + own
        now += float(own.max()) + period
    return np.maximum.accumulate(out)  # frames of a take that was cut off do not overtake
