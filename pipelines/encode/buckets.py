"""Several sizes and durations in one latents store: which of them a clip is encoded at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerflow.media.cells import MediaError
from manifests.common import parse_size

FORM = re.compile(r"(\d{1,5}x\d{1,5})x(\d{1,5})")


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels and a number of frames."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def parse_buckets(text: str | Sequence[str]) -> tuple[Bucket, ...]:
    """``"480x720x16,720x480x16"`` (height, width, frames), or a list of such, as sorted buckets.

    ValueError for any other text, for none, and for one that comes twice.
    """
    said = text.split(",") if isinstance(text, str) else list(text)
    found = []
    for each in said:
        match = FORM.fullmatch(each.strip())
        if match is None or not int(match[2]):
            raise ValueError(f"a bucket is HEIGHTxWIDTHxFRAMES, such as 480x720x16, not {each!r}")
        found.append(Bucket(*parse_size(match[1]), int(match[2])))
    if not found or len(set(found)) < len(found):
        raise ValueError(f"buckets must be one or more and differ, not {said}")
    return tuple(sorted(found))


def choose_bucket(
    buckets: Sequence[Bucket], size: tuple[int, int], frames: int | None
) -> Bucket | None:
    """The bucket of a clip of that size (height, width) and length; None when it fills none.

    A clip fills a bucket that is nowhere larger than the clip, so that nothing is enlarged and no
    frame comes twice. Of those that it fills, in this order: the nearest aspect ratio (smallest
    ``|log(h / w) - log(H / W)|``), then the largest picture, then the most frames; then, of two
    aspects that are equally near, the taller one. frames: None where the length does not count, as
    of stills, which stay single.
    """
    height, width = size

    def merit(bucket: Bucket) -> tuple[float, int, int, int]:
        off = abs(math.log(bucket.height * width / (bucket.width * height)))
        return -round(off, 9), bucket.height * bucket.width, bucket.frames, bucket.height

    filled = [
        bucket
        for bucket in buckets
        if bucket.height <= height
        and bucket.width <= width
        and (frames is None or bucket.frames <= frames)
    ]
    return max(filled, key=merit, default=None)


def bucket_of(row: Mapping[str, Any], buckets: Sequence[Bucket], *, stills: bool) -> Bucket:
    """``choose_bucket`` for a corpus row. MediaError, a reason to reject it, when it fills none.

    stills: the row becomes single frames whatever it is.
    """
    size, frames = (row["height"], row["width"]), row["num_frames"]
    chosen = choose_bucket(buckets, size, None if stills or row["kind"] == "image" else frames)
    if chosen is None:
        raise MediaError(
            f"clip {row['id']} of {size[0]}x{size[1]}x{frames} fills none of the buckets "
            f"{', '.join(map(str, buckets))}: each is higher, wider or longer"
        )
    return chosen
