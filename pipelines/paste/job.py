"""Paste: matted foregrounds x other backgrounds -> pasted clips, exact by construction.

list sources -> plan draws -> load foreground and background -> path -> appearance -> warp and
composite -> rules -> scores -> corpus. One unit of work is a range of draws; every draw is a
function of (seed, index), so the rows do not depend on units, workers or order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from layerflow.clip import BACKGROUND, BLENDED, FOREGROUND, LayeredClip
from layerflow.corpus.columns import SingleObject, encode_objects
from layerflow.corpus.table import EXTENDED_SCHEMA, clip_id, encode_row, origin, rejected_row
from layerflow.locations import clean_uri
from layerflow.media.cells import MediaError, encode_color
from layerflow.outputs import local_output
from layerflow.seeds import first_of_block, generator, in_blocks, in_turns
from manifests.paste import PasteOptions
from pipelines.engine.jobs import (
    Choose,
    Outcome,
    Recipe,
    Summary,
    Unit,
    make_recipe,
    run_job,
    unit_key,
)
from pipelines.inputs.sources import Source, list_backgrounds, list_foregrounds
from pipelines.paste.load import Loader, UnluckyDrawError
from pipelines.paste.repeats import Repeats
from pipelines.paste.scene import Draw, Scene, mirrored, notes_text, render_scene
from pipelines.paste.scores import check_rules, encode_checked, score_layers
from pipelines.publish.licences import all_of
from pipelines.vision.numerics import single_thread

FORMAT_VERSION = 4
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


def run_paste(
    options: PasteOptions,
    *,
    workers: int | None = None,
    quiet: bool = False,
    only: Choose | None = None,
    accept_lost: bool = False,
) -> Summary:
    """Make ``options.count`` pasted clips in the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. only: whether a unit is
    wanted, all by default. accept_lost: see ``run_job``. Raises ValueError for a request that
    cannot work (inputs, output folder) before any work starts.
    """
    out = local_output(options.out)
    recipe = make_recipe("pasted", options.model_dump(mode="json"), FORMAT_VERSION)
    plan = Plan(
        tuple(list_foregrounds(options.foregrounds, options.gate)),
        tuple(list_backgrounds(options.backgrounds)),
    )
    units = plan_units(plan, options)
    work = partial(paste_unit, plan=plan, options=options, recipe=recipe)
    return run_job(
        units,
        work,
        out=out,
        recipe=recipe,
        workers=workers,
        quiet=quiet,
        only=only,
        accept_lost=accept_lost,
        schema=EXTENDED_SCHEMA,
        refuse=None if options.repeats else Repeats(),
    )


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
    """The clips of a range of draws, one after the other as they are taken."""
    loader = _loader(options.size, options.frames, options.fps, options.deadline)
    outcome = Outcome()

    def rows() -> Iterator[dict[str, Any]]:
        with single_thread():
            for index in range(payload["start"], payload["stop"]):
                row = paste_one(index, plan, options, recipe.hash, loader, outcome)
                if row is not None:
                    yield row
        loader.forget_files()

    outcome.rows = rows()
    return outcome


def paste_one(
    index: int,
    plan: Plan,
    options: PasteOptions,
    recipe: str,
    loader: Loader,
    outcome: Outcome,
) -> dict[str, Any] | None:
    """One clip: up to ``options.attempts`` draws until one passes the rules; None (and a rejected
    row) when none does."""
    reason = ""
    scores: dict[str, float] = {}
    for attempt in range(options.attempts):
        try:
            draw = load_draw(index, attempt, plan, options, loader, outcome, recipe)
            scene = make_scene(draw, options)
            scores = scene.scores
            refusal = check_rules(scores, scene.facts, options)
            if refusal is None:
                return make_row(draw, scene, options, recipe)
            reason = refusal
        except (MediaError, UnluckyDrawError) as error:
            reason = str(error)
    uri = plan.foregrounds[in_blocks(options.seed, index, options.count, len(plan.foregrounds))].uri
    text = f"no draw passed in {options.attempts} attempts; the last: {reason}"
    outcome.rejected.append(
        rejected_row(uri, "draw", text, kind="pasted", recipe=recipe, quality=scores)
    )
    return None


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

    place = generator(seed, index, "film", attempt)
    subject = partial(loader.foreground, rng=place)
    objects = [
        usable(plan.foregrounds, first, subject, FOREGROUND if report else None)
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
    background = usable(plan.backgrounds, behind, film, BACKGROUND if report else None)
    flipped = bool(options.flip and rng.random() < 0.5)
    if flipped:
        background = mirrored(background)
    return Draw(index, attempt, tuple(objects), background, flipped)


def make_scene(draw: Draw, options: PasteOptions) -> Scene:
    """A rendered draw with all its scores before encoding."""
    scene = render_scene(draw, options)
    return replace(scene, scores=score_layers(scene.layers) | scene.scores)


def make_row(
    draw: Draw,
    scene: Scene,
    options: PasteOptions,
    recipe: str,
) -> dict[str, Any]:
    """The corpus row: prompts, origin with all parents, scores after encoding where asked."""
    main, background = draw.objects[-1], draw.background
    records = [*(item.record for item in reversed(draw.objects)), background.record]
    subject = ", ".join(dict.fromkeys(item.prompt for item in reversed(draw.objects)))
    clip = LayeredClip(
        **scene.layers,
        prompts={
            FOREGROUND: subject,
            BACKGROUND: background.prompt,
            BLENDED: f"{subject}, {background.prompt}",
        },
        fps=options.fps,
        kind="pasted",
        alpha_kind=main.alpha_kind if len(draw.objects) == 1 else "soft",
        background_kind=background.kind,
    )
    first, keys = records[0], [r.get("key") or r["sha256"] for r in records]
    parts: dict[str, Any] = {
        "id": clip_id("pasted", keys, [draw.index], recipe),
        "origin": _origin(first, options)
        | {
            "licence": all_of([r["licence"] or options.licence for r in records]),
            "attribution": all_of(
                [r["attribution"] or options.attribution for r in records], "attribution"
            ),
            "parents": [clean_uri(r["uri"]) for r in records],
        },
        "recipe": recipe,
    }
    if options.encoded_check and draw.index % options.encoded_check == 0:
        psnr = options.min_psnr
        row = encode_checked(clip, scene.scores, crf=options.crf, min_psnr=psnr, **parts)
    else:
        row = encode_row(clip, quality=scene.scores, crf=options.crf, **parts)
    return row | extra_cells(draw, scene, options)


def extra_cells(draw: Draw, scene: Scene, options: PasteOptions) -> dict[str, Any]:
    """The columns beyond those of every corpus: see ``layerflow.corpus.columns``."""
    singles = [
        SingleObject(order, item.prompt, visible, amodal, _origin(item.record, options))
        for order, (item, visible, amodal) in enumerate(
            zip(draw.objects, scene.visible, scene.amodal, strict=False)
        )
    ]
    plate = scene.plate
    return {
        "shadow": "none" if plate is None else "background",
        "plate": None if plate is None else encode_color(plate, options.fps, crf=options.crf),
        "objects": encode_objects(singles, options.fps) or None,
        "draw": notes_text(scene.notes),
    }


def _origin(record: Mapping[str, Any], options: PasteOptions) -> dict[str, Any]:
    return origin(
        record["uri"].split("#")[0],
        record["sha256"],
        start=record["start"],
        end=record["end"],
        licence=record["licence"] or options.licence,
        attribution=record["attribution"] or options.attribution,
    )
