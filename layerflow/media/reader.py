"""One open video: its best video stream, and any of its frames exactly.

Decoding starts only at packets from which every later picture is exact, packets are known by their
place in the file and frames by their packets: what a container's index, a seek or a jump in the
time stamps says is never believed.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from layerflow.media.bitstream import KEY_CODECS
from layerflow.media.cells import MediaError
from layerflow.media.container import Limits, best_stream, has_alpha, open_container, reason_of
from layerflow.media.hdr import is_hdr
from layerflow.media.opening import check_file
from layerflow.media.packets import NONE, Packets, demuxed, read_packets
from layerflow.media.upright import View, aspect_of, view_of

ALPHA_DECODERS = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
SELF_STARTING = frozenset({"h264", "vp8", "vp9", "av1"})  # show nothing before it is exact
UNMARKED = frozenset({"cfhd"})  # whose decoder calls no frame a key
SEEK_BACK = (0.0, 2.0, 10.0)  # seconds before the target, when a seek lands after it
LARGE_TAIL = 1 << 16  # bytes that may well be an index
WORTH_A_SEEK = 12  # packets that it is cheaper to decode than to leap over


class Shown(NamedTuple):
    """A decoded frame: its place among all frames, seconds from the first, how it is looked at."""

    place: int
    time: float
    frame: Any
    view: View


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a file's best video stream from all its packets and one frame.

    first: the first frame that can be decoded; times count from it.
    """

    packets: Packets
    first: int
    view: View
    interlaced: bool
    hdr: bool


def facts(path: Path, limits: Limits) -> VideoFacts:
    """Once for all windows of a file, since every packet is read. Raises MediaError."""
    stat = check_file(path, limits.max_bytes)
    return _facts(path, limits, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _facts(path: Path, limits: Limits, size: int, modified: int) -> VideoFacts:
    with open_container(path, limits) as container:
        stream = best_stream(container, limits)
        packets = read_packets(container, stream, limits.max_frames)
    found = VideoFacts(packets, 0, View(), False, False)
    with VideoReader(path, limits, found=found) as reader:
        shown = next(reader.pictures(range(len(packets.times))), None)
    if shown is not None:
        times = packets.times - packets.times[shown.place]
        frame = shown.frame
        found = VideoFacts(
            packets=replace(packets, times=times),
            first=shown.place,
            view=shown.view,
            interlaced=bool(frame.interlaced_frame),
            hdr=is_hdr(frame),
        )
    seconds = found.packets.times[-1]
    if seconds > limits.max_seconds:
        raise MediaError(f"{seconds:.0f} s is over the limit of {limits.max_seconds:.0f} s")
    return found


class VideoReader:
    """A video that is open for decoding; a context manager.

    alpha: keep the alpha channel of VP8 and VP9, which FFmpeg's own decoders drop silently.
    damage: gets a line for everything that cannot be decoded.
    """

    def __init__(
        self,
        path: Path,
        limits: Limits,
        *,
        alpha: bool = False,
        damage: list[str] | None = None,
        found: VideoFacts | None = None,
    ) -> None:
        self._path, self._limits = path, limits
        self.facts = found or facts(path, limits)
        self.packets = self.facts.packets
        self._starts = frozenset(self.packets.starts.tolist())
        self._damage = [] if damage is None else damage
        self._alpha = alpha
        self._run: Generator[Shown] | None = None
        self._at = self._next = -1
        self._older: Any = None  # a container whose decoder is still in use
        self._open()

    def _open(self) -> None:
        self._container = open_container(self._path, self._limits)
        self._fresh = True
        self.stream = best_stream(self._container, self._limits)
        self._context = self.stream.codec_context
        self._codec = self._context.codec.canonical_name
        self._aspects = self.stream.sample_aspect_ratio, self._context.sample_aspect_ratio
        self._checks_keys = self._codec in KEY_CODECS - UNMARKED
        if self._alpha and has_alpha(self.stream) and self._codec in ALPHA_DECODERS:
            self._context = av.CodecContext.create(ALPHA_DECODERS[self._codec], "r")
            self._checks_keys = False  # libvpx does not say; it decodes nothing before a key

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._run is not None:
            self._run.close()
        self._container.close()

    def note(self, damage: str) -> None:
        """Put on record what is left out."""
        self._damage.append(damage)

    def check(self, frame: Any) -> None:
        """Raises MediaError for a frame that is over the limit although the header was not."""
        if frame.width * frame.height > self._limits.max_pixels:
            limit = self._limits.max_pixels
            raise MediaError(
                f"HxW {frame.height}x{frame.width} is over the limit of {limit} pixels"
            )

    def may_begin(self, frame: Any) -> bool:
        """Whether a take's first frame is whole: some decoders start on grey without a key."""
        return self._codec not in KEY_CODECS - SELF_STARTING or self._is_key(frame)

    def between(self, start: float, end: float) -> range:
        """The places of the frames with ``start <= time < end`` seconds.

        From the start on it is on record what cannot be decoded before the first that can.
        """
        times = self.packets.times
        if start <= 0 and self.facts.first:
            self.note(f"{self.facts.first} frames before the first key frame are not decodable")
        size = self._path.stat().st_size
        unread = size - self.packets.end
        if start <= 0 and self.packets.end and unread > max(LARGE_TAIL, size / 3):
            self.note(f"{unread} bytes behind the last frame are not read: files joined into one?")
        first = int(np.searchsorted(times, max(start, 0.0) - 1e-6))
        return range(first, max(first, int(np.searchsorted(times, end))))

    def pictures(self, places: Sequence[int]) -> Iterator[Shown]:
        """The frames at rising places, those left out that cannot be decoded.

        Where the last call stopped before them and no start lies between, it is gone on with.
        """
        waiting = deque(places)
        while waiting:
            if self._run is None or waiting[0] <= self._at or self._leap_pays(waiting[0]):
                self._run = self._run_for(waiting[0])
            for shown in self._run:
                self._at = shown.place
                while waiting and waiting[0] < shown.place:
                    waiting.popleft()  # could not be decoded
                if waiting and waiting[0] == shown.place:
                    waiting.popleft()
                    yield shown
                if not waiting or self._leap_pays(waiting[0]):
                    break
            else:
                self._run = None
                return

    def _leap_pays(self, place: int) -> bool:
        near = self._next + WORTH_A_SEEK
        return self.packets.order[place] > near and self.packets.starts_for(place)[0] > near

    def _run_for(self, place: int) -> Generator[Shown]:
        """Frames from a start on which a frame can be reached, in order, without end.

        A start that the decoder does not confirm as a key frame is not used.
        """
        starts = self.packets.starts_for(place)
        for start in starts[:-1]:
            run = self._decode(start, begun=True)
            least = int(self.packets.rank[start])
            head = next((shown for shown in run if shown.place >= least), None)
            if head is not None and head.place == least and self._is_key(head.frame):
                yield head
                yield from run
                return
            run.close()
        yield from self._decode(starts[-1], begun=False)

    def is_start(self, frame: Any, place: int) -> bool:
        """Whether the frame at a place refers to none before it."""
        if not self.packets.stamped:
            return self._is_key(frame)
        return int(self.packets.order[place]) in self._starts

    def _is_key(self, frame: Any) -> bool:
        return bool(frame.key_frame) or not self._checks_keys

    def _decode(self, start: int, *, begun: bool) -> Generator[Shown]:
        """Frames of the packets from ``start`` on; at every splice the decoder starts anew.

        begun: whether the first one is known to be a key frame.
        """
        packets = self.packets
        self._context.flush_buffers()
        state = _Run(self, int(packets.take[start]), begun)
        for place, packet in self._packets(start):
            if packets.take[place] != state.take:
                yield from state.accept(self._decoded(None))
                state.ended()
                self._context.flush_buffers()
                state = _Run(self, int(packets.take[place]), begun=False)
            if packets.stamped:
                packet.pts = int(packets.rank[place])  # comes back with the frame, whatever jumps
            before = len(self._damage)
            frames = self._decoded(packet)
            state.lost += len(self._damage) > before
            state.whole &= len(self._damage) == before
            yield from state.accept(frames, int(packets.rank[place]))
        yield from state.accept(self._decoded(None))
        state.ended()

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return list(self._context.decode(packet))
        except (av.error.FFmpegError, EOFError) as error:
            self._damage.append(reason_of(error))
            return []

    def aspect(self) -> float:
        """Of the pixels, by what the decoder has read last: a stream may change it."""
        container, first = self._aspects
        now = self._context.sample_aspect_ratio
        if first is None:  # not known before anything was decoded
            self._aspects = container, now
        changed = first is not None and now is not None and now != first
        return aspect_of(now, container) if changed else aspect_of(container, now)

    def _packets(self, start: int) -> Iterator[tuple[int, Any]]:
        """(place, packet) from ``start`` on: each is known to be the one at its place."""
        given = False
        for target in self._targets(start):
            if given and target is not None:
                continue  # the file turned out to differ: a seek would reset the decoder
            place = self._go_to(target, anew=not given)
            try:
                for packet in demuxed(self._container, self.stream):
                    if place is None:
                        place = self.packets.find(packet)
                        if place is None:
                            continue
                    if place > start or not self.packets.is_at(packet, place):
                        break
                    if place == start:
                        self._next = start = place + 1
                        given = True
                        yield place, packet
                    place += 1
            except av.error.FFmpegError as error:
                self._damage.append(reason_of(error))
            if start >= self.packets.count:
                return

    def _targets(self, start: int) -> list[int | None]:
        """Ticks to seek to, one after the other; None is the beginning of the file."""
        stamps = [int(s) for s in self.packets.identity[start, 2:] if s != NONE]
        if start == 0 or not stamps:
            return [None]
        tick = float(self.stream.time_base)
        return [*(min(stamps) - round(back / tick) for back in SEEK_BACK), None]

    def _go_to(self, target: int | None, *, anew: bool) -> int | None:
        """Go to a time stamp, or to the first packet, whose place 0 is returned.

        anew: the decoder may forget what it knows.
        """
        if target is None:
            if not self._fresh:
                context, closed = self._context, self._container
                self._open()
                if anew:
                    closed.close()
                else:
                    self._context, self._older = context, closed
            self._fresh = False
            return 0
        self._fresh = False
        with contextlib.suppress(av.error.FFmpegError):
            self._container.seek(target, stream=self.stream)
        return None


_kept: dict[Any, VideoReader] = {}


@contextlib.contextmanager
def kept_reader(path: Path, limits: Limits, *, alpha: bool = False) -> Iterator[VideoReader]:
    """A reader that stays open for the next window of the same file, which goes on decoding there.

    One file at a time. Raises MediaError as ``VideoReader``.
    """
    stat = check_file(path, limits.max_bytes)
    key = path, limits, alpha, stat.st_size, stat.st_mtime_ns
    reader = _kept.pop(key, None) or VideoReader(path, limits, alpha=alpha)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    close_kept()
    _kept[key] = reader


def close_kept() -> None:
    """Close the reader that ``kept_reader`` keeps."""
    while _kept:
        _kept.popitem()[1].close()


class _Run:
    """Which frames of one take's decoding are shown, and where."""

    def __init__(self, reader: VideoReader, take: int, begun: bool) -> None:
        self._reader, self.take, self._begun = reader, take, begun
        takes = reader.packets.take[reader.packets.order]
        self._head = int(np.searchsorted(takes, take))
        self._end = int(np.searchsorted(takes, take, side="right"))
        self._last = -1
        self._count = self.lost = 0
        self.whole = True  # nothing is missing that frames refer to
        self._aspects = [(-1, reader.aspect())]

    def accept(self, frames: Sequence[Any], place: int = 0) -> Iterator[Shown]:
        """Those of the decoded frames that are shown. place: of the packet that brought them."""
        reader = self._reader
        now = reader.aspect()
        if now != self._aspects[-1][1]:
            self._aspects.append((place, now))
        for frame in frames:
            reader.check(frame)
            at = frame.pts if reader.packets.stamped else self._head + self._count + self.lost
            self._count += 1
            if at is None or at < 0:
                continue  # hidden by an edit list
            if not self._begun and not reader.may_begin(frame):
                continue
            if at <= self._last or not self._head <= at < self._end:
                reader.note("a frame is out of order")
                continue
            self.whole = not frame.is_corrupt and (self.whole or reader.is_start(frame, at))
            if not self.whole:
                reader.note("a frame is not decodable as a whole, or follows on one")
                continue
            if not self._begun and at > self._head:
                reader.note(
                    f"{at - self._head} frames before the first key frame are not decodable"
                )
            self._begun, self._last = True, at
            aspect = next(value for since, value in reversed(self._aspects) if since <= at)
            view = view_of(frame, aspect, reader.facts.view)
            yield Shown(at, float(reader.packets.times[at]), frame, view)

    def ended(self) -> None:
        """Put on record that fewer frames came than were counted, where they bear no stamps."""
        missing = self._end - self._head - self._count - self.lost
        if missing > 0 and not self._reader.packets.stamped:
            self._reader.note(f"{missing} frames cannot be decoded")
