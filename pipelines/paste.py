"""Paste: matted foregrounds x other backgrounds -> pasted clips, exact by construction.

list sources -> plan draws -> load foreground and background -> path -> appearance -> warp and
composite -> rules -> scores -> corpus. One unit of work is a range of draws; every draw is a
function of (seed, index), so the rows do not depend on units, workers or order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import U8, LayeredClip
from layerflow.corpus import clip_id, encode_row, origin, rejected_row
from layerflow.media import MediaError
from manifests.paste import PasteOptions
from pipelines.jobs import Outcome, Recipe, Summary, Unit, make_recipe, run_job, unit_key
from pipelines.matting.numerics import single_thread
from pipelines.stages.appearance import Look, apply_curve, clipped, make_grain, match_look
from pipelines.stages.composite import Sprite, compose, prefilter, reduced
from pipelines.stages.draws import (
    choose_frames,
    first_of_block,
    generator,
    in_blocks,
    in_turns,
)
from pipelines.stages.load import Loader, UnluckyDrawError
from pipelines.stages.paste_scores import Facts, check_rules, encoded_scores, score_layers
from pipelines.stages.path import draw_path, mean_step
from pipelines.stages.sources import (
    Background,
    Foreground,
    Source,
    list_backgrounds,
    list_foregrounds,
)

FORMAT_VERSION = 1
UNIT_PIXELS = 24_000_000  # of all frames of a unit's clips: some seconds of work
MAX_UNIT = 48
MAX_UNITS = 5000  # so that the plan of a million clips stays small
MAX_SOURCES = 12  # that are tried when some cannot be loaded

Load = Callable[[Source], Any]


@dataclass(frozen=True)
class Plan:
    """What all units share: sources in order."""

    foregrounds: tuple[Source, ...]
    backgrounds: tuple[Source, ...]


def run_paste(options: PasteOptions, *, workers: int | None = None, quiet: bool = False) -> Summary:
    """Make ``options.count`` pasted clips in the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. Raises ValueError for a
    request that cannot work (inputs, output folder) before any work starts.
    """
    recipe = make_recipe("pasted", options.model_dump(mode="json"), FORMAT_VERSION)
    plan = Plan(
        tuple(list_foregrounds(options.foregrounds, options.gate)),
        tuple(list_backgrounds(options.backgrounds)),
    )
    units = plan_units(plan, options)
    work = partial(paste_unit, plan=plan, options=options, recipe=recipe)
    return run_job(units, work, out=Path(options.out), recipe=recipe, workers=workers, quiet=quiet)


def plan_units(plan: Plan, options: PasteOptions, size: int | None = None) -> list[Unit]:
    """Ranges of draws; ``size`` draws each, by default as many as make some seconds of work."""
    pixels = options.frames * options.size[0] * options.size[1]
    usual = max(1, min(MAX_UNIT, UNIT_PIXELS // pixels))
    size = size or max(usual, -(-options.count // MAX_UNITS))
    sources = unit_key([s.stamp for s in plan.foregrounds], [s.stamp for s in plan.backgrounds])
    units = []
    for start in range(0, options.count, size):
        stop = min(options.count, start + size)
        payload = {"uri": f"draws {start}..{stop - 1}", "start": start, "stop": stop}
        units.append(Unit(unit_key(sources, start, stop), start, payload))
    return units


@lru_cache(maxsize=1)
def _loader(size: tuple[int, int], frames: int, fps: float, deadline: float) -> Loader:
    """One loader (and decoding child) a process, not one a unit."""
    return Loader(size, frames, fps, deadline)


def paste_unit(
    payload: dict[str, Any], *, plan: Plan, options: PasteOptions, recipe: Recipe
) -> Outcome:
    """The clips of a range of draws."""
    loader = _loader(options.size, options.frames, options.fps, options.deadline)
    outcome = Outcome()
    with single_thread():
        for index in range(payload["start"], payload["stop"]):
            paste_one(index, plan, options, recipe.hash, loader, outcome)
    return outcome


@dataclass(frozen=True)
class Draw:
    """Sources and pictures of one attempt at one clip."""

    index: int
    attempt: int
    objects: tuple[Foreground, ...]
    background: Background


def paste_one(
    index: int,
    plan: Plan,
    options: PasteOptions,
    recipe: str,
    loader: Loader,
    outcome: Outcome,
) -> None:
    """One clip: up to ``options.attempts`` draws until one passes the rules."""
    reason = ""
    scores: dict[str, float] = {}
    for attempt in range(options.attempts):
        try:
            draw = load_draw(index, attempt, plan, options, loader, outcome, recipe)
            layers, scores, facts = make_layers(draw, options)
            refusal = check_rules(scores, facts, options)
            if refusal is None:
                outcome.rows.append(make_row(draw, layers, scores, options, recipe))
                return
            reason = refusal
        except (MediaError, UnluckyDrawError) as error:
            reason = str(error)
    uri = plan.foregrounds[in_blocks(options.seed, index, options.count, len(plan.foregrounds))].uri
    text = f"no draw passed in {options.attempts} attempts; the last: {reason}"
    outcome.rejected.append(
        rejected_row(uri, "draw", text, kind="pasted", recipe=recipe, quality=scores)
    )


def load_draw(
    index: int,
    attempt: int,
    plan: Plan,
    options: PasteOptions,
    loader: Loader,
    outcome: Outcome,
    recipe: str,
) -> Draw:
    """Choose and load the sources of one attempt.

    The first attempt uses all sources equally often; a source that cannot be loaded is reported
    by the draw that uses it first, so once in the whole job, and another one steps in.
    """
    seed, count = options.seed, options.count
    rng = generator(seed, index, "sources", attempt)
    number = int(rng.integers(options.objects[0], options.objects[1] + 1))
    firsts = [int(which) for which in rng.integers(len(plan.foregrounds), size=number)]
    behind = int(rng.integers(len(plan.backgrounds)))
    reports = [False] * number
    # Retries keep the foreground as long as the fault may be the draw's.
    if attempt < (options.attempts + 1) // 2:
        firsts[0] = in_blocks(seed, index, count, len(plan.foregrounds))
        reports[0] = attempt == 0 and first_of_block(index, count, len(plan.foregrounds))
    if attempt == 0:
        behind = in_turns(seed, index, len(plan.backgrounds))

    def usable(sources: Sequence[Source], first: int, load: Load, stage: str | None) -> Any:
        """The first of some drawn sources that can be loaded, ``first`` before all."""
        others = rng.integers(len(sources), size=MAX_SOURCES)
        for place, which in enumerate((first, *others)):
            try:
                return load(sources[which])
            except MediaError as problem:
                error = problem
                if place == 0 and stage is not None:
                    row = rejected_row(
                        sources[which].uri, stage, str(error), kind="pasted", recipe=recipe
                    )
                    outcome.rejected.append(row)
        raise error

    objects = [
        usable(plan.foregrounds, first, loader.foreground, "foreground" if report else None)
        for first, report in zip(firsts, reports, strict=True)
    ]
    camera = generator(seed, index, "camera", attempt)
    film = partial(
        loader.background,
        rng=camera,
        camera_speed=options.camera_speed,
        still_camera=options.still_camera,
    )
    report = attempt == 0 and index < len(plan.backgrounds)
    background = usable(plan.backgrounds, behind, film, "background" if report else None)
    if options.flip and rng.random() < 0.5:
        background = mirrored(background)
    return Draw(index, attempt, tuple(objects), background)


def mirrored(background: Background) -> Background:
    """Left and right swapped, the camera's motion too."""
    width = background.frames.shape[2]
    flip = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    frames = np.ascontiguousarray(background.frames[:, :, ::-1])
    return replace(background, frames=frames, camera=flip @ background.camera @ flip)


def make_layers(draw: Draw, options: PasteOptions) -> tuple[dict[str, U8], dict[str, float], Facts]:
    """The layers of one draw (LayeredClip fields), its scores before encoding, other facts."""
    layers, scores, facts = render_layers(draw, options)
    return layers, score_layers(layers) | scores, facts


def render_layers(
    draw: Draw, options: PasteOptions
) -> tuple[dict[str, U8], dict[str, float], Facts]:
    """The compositor: paths, appearance, warping, compositing.

    Scores of the draw itself: least ``visible_fraction`` of any frame, ``path_speed`` (share of
    the width per frame, without the camera), ``motion`` (pixels a frame, with it), ``scale``
    (clip pixels per source pixel), ``harmonise_strength``, and of the background
    ``camera_static`` and ``registration_residual``.
    """
    background = draw.background
    built = [_sprite(draw, place, options) for place in range(len(draw.objects))]
    looks = [look for _, look, _ in built]
    grain, noise = max(look.grain for look in looks), None
    if grain > 0:
        noise = make_grain(options.seed, draw.index, background.frames.shape[:3], grain)
    foreground, alpha, blended, visible = compose(
        [sprite for sprite, _, _ in built],
        background.frames,
        shutter=options.shutter / 360,
        grain=noise,
    )
    layers = {
        "foreground": foreground,
        "alpha": alpha,
        "background": background.frames,
        "blended": blended,
    }
    main = built[-1][0].path
    scores = {
        "visible_fraction": min(visible),
        "path_speed": main.way / options.size[1],
        "motion": mean_step(main),
        "scale": float(main.poses[:, 2].mean()) * draw.objects[-1].scale,
        "harmonise_strength": max(look.strength for look in looks),
        "camera_static": background.static,
        "registration_residual": background.residual,
    }
    moving = any(item.moving for item in draw.objects) or background.static < 1
    return layers, scores, Facts(moving, max(extra for _, _, extra in built))


def _sprite(draw: Draw, place: int, options: PasteOptions) -> tuple[Sprite, Look, float]:
    """One object on its path, with the look of its background; what clipping that added."""
    item, background = draw.objects[place], draw.background
    rng = generator(options.seed, draw.index, f"path{place}", draw.attempt)
    path = draw_path(rng, item, options, background.camera)
    picked = [0]
    if item.moving:
        picked = choose_frames(len(item.rgba), item.fps, options.frames, options.fps, rng)
    middle = item.rgba[picked[len(picked) // 2]]
    scale = float(path.poses[:, 2].max())
    look = match_look(
        middle,
        scale,
        background.frames,
        _around(path.poses[len(path.poses) // 2], middle.shape, options.size),
        strength=rng.uniform(*options.harmonise),
        blur=options.match_blur,
        grain=options.match_grain,
    )
    frames, extra = [], 0.0
    for index in picked:
        rgba = reduced(item.rgba[index], scale)
        if look.curve is not None:
            before = clipped(rgba)
            rgba = apply_curve(rgba, look.curve)
            extra = max(extra, clipped(rgba) - before)
        frames.append(prefilter(rgba, scale * middle.shape[1] / rgba.shape[1], look.sigma))
    return Sprite(frames, path, middle.shape[:2]), look, extra


def _around(
    pose: np.ndarray, shape: Sequence[int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """y0, y1, x0, x1: twice the object's box at a pose, inside the picture, not empty."""
    half = np.array([shape[1], shape[0]]) * pose[2]
    low, high = pose[:2] - half, pose[:2] + half
    x0, y0 = (int(np.clip(low[k], 0, size[1 - k] - 8)) for k in (0, 1))
    x1, y1 = (int(np.clip(high[k], (x0, y0)[k] + 8, size[1 - k])) for k in (0, 1))
    return y0, y1, x0, x1


def make_row(
    draw: Draw,
    layers: Mapping[str, U8],
    scores: dict[str, float],
    options: PasteOptions,
    recipe: str,
) -> dict[str, Any]:
    """The corpus row: prompts, origin with all parents, scores after encoding where asked."""
    main, background = draw.objects[-1], draw.background
    records = [*(item.record for item in reversed(draw.objects)), background.record]
    subject = ", ".join(dict.fromkeys(item.prompt for item in reversed(draw.objects)))
    clip = LayeredClip(
        **layers,
        prompts={
            "foreground": subject,
            "background": background.prompt,
            "blended": f"{subject}, {background.prompt}",
        },
        fps=options.fps,
        kind="pasted",
        alpha_kind=main.alpha_kind if len(draw.objects) == 1 else "soft",
        background_kind=background.kind,
    )
    first = records[0]
    row = encode_row(
        clip,
        id=clip_id("pasted", [r.get("key") or r["sha256"] for r in records], [draw.index], recipe),
        origin=origin(
            first["uri"].split("#")[0],
            first["sha256"],
            start=first["start"],
            end=first["end"],
            licence=_joined(records, "licence", options.licence),
            attribution=_joined(records, "attribution", options.attribution),
            parents=[r["uri"] for r in records],
        ),
        quality=scores,
        recipe=recipe,
        crf=options.crf,
    )
    if options.encoded_check and draw.index % options.encoded_check == 0:
        row["quality"] |= encoded_scores(row, clip)
    return row


def _joined(records: Sequence[Mapping[str, Any]], name: str, default: str | None) -> str | None:
    """The distinct licences or names of all sources, in order."""
    values = dict.fromkeys(r[name] or default for r in records)
    return "; ".join(value for value in values if value) or None
