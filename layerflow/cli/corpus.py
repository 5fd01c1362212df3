"""``layerflow validate | stats | view | filter | merge | split | retry``: work on corpora."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from layerflow import front
from layerflow.corpus.log import at_version

if TYPE_CHECKING:
    from layerflow.corpus.derive import Derived

CorpusPath = Annotated[
    str,
    typer.Argument(help="a corpus folder, or hf://datasets/NAMESPACE/NAME", metavar="CORPUS"),
]
OutPath = Annotated[Path, typer.Option(help="corpus folder to make; must not exist")]
AtVersion = Annotated[int | None, typer.Option("--version", help=get_args(front.Version)[1], min=1)]
Json = Annotated[bool, typer.Option("--json", help="print JSON only")]


def validate(
    corpus: CorpusPath,
    version: AtVersion = None,
    workers: Annotated[
        int | None, typer.Option(help="decoding processes; default: all CPUs; 0: this process")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="print every problem")] = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Check schema, files, checksums, every media cell and the compositing equation; of latents,
    that they fit their shapes and are finite."""
    import json as encoder
    from dataclasses import asdict

    from rich.progress import track

    from layerflow.corpus.latents import is_latents
    from layerflow.corpus.published import fetched, open_corpus
    from layerflow.corpus.validate import check_folder, check_rows

    if is_latents(corpus):
        return _validate_latents(corpus, every=every, json=json)
    folder = fetched(at_version(corpus, version))
    problems = check_folder(folder)
    errors: dict[str, list[float]] = {}
    rows = 0
    if all(problem.field == "corpus.json" for problem in problems):
        opened = open_corpus(folder)
        processes = os.cpu_count() or 1 if workers is None else workers
        reports = check_rows(opened, workers=processes)
        for report in track(
            reports, "rows", total=len(opened), disable=quiet or json, transient=True
        ):
            rows += 1
            problems.extend(report.problems)
            if report.encoded_rms is not None:
                errors.setdefault(report.kind, []).append(report.encoded_rms)
    means = {kind: sum(values) / len(values) for kind, values in errors.items()}
    if json:
        found = [asdict(problem) for problem in problems]
        typer.echo(encoder.dumps({"rows": rows, "problems": found, "encoded_rms": means}))
    else:
        for problem in problems if every else problems[:1]:
            typer.echo(str(problem))
        if len(problems) > 1 and not every:
            typer.echo(f"and {len(problems) - 1} more problems (--all shows them)")
        for kind, mean in sorted(means.items()):
            typer.echo(f"{kind}: blended is {mean:.2f} levels rms from its layers, as encoded")
        typer.echo(f"{rows} rows checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def stats(corpus: CorpusPath, version: AtVersion = None, json: Json = False) -> None:
    """Counts, seconds, bytes, scores, licences, duplicates and rejection reasons; of latents, their
    kinds and sizes."""
    import json as encoder

    from layerflow.corpus.latents import Latents, is_latents
    from layerflow.corpus.published import fetched, open_corpus
    from layerflow.corpus.validate import refuse_unpackable
    from layerflow.corpus.validate import stats as of

    latents = Latents.open(corpus) if is_latents(corpus) else None
    if latents is None:
        opened = open_corpus(fetched(at_version(corpus, version)))
        refuse_unpackable(opened)
    found = of(opened) if latents is None else latents.stats()
    if json:
        typer.echo(encoder.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console()
    for table in _tables(found) if latents is None else _latent_tables(found):
        console.print(table)


def _validate_latents(folder: str, *, every: bool, json: bool) -> None:
    import json as encoder

    from layerflow.corpus.latents import Latents

    rows, problems = 0, []
    try:
        latents = Latents.open(folder)
        rows = len(latents)
        problems = [{"row": row, "what": what} for row, what in latents.faults()]
    except ValueError as error:
        problems = [{"row": None, "what": str(error)}]
    if json:
        typer.echo(encoder.dumps({"rows": rows, "problems": problems}))
    else:
        for problem in problems if every else problems[:1]:
            where = "" if problem["row"] is None else f"row {problem['row']}: "
            typer.echo(f"{where}{problem['what']}")
        if len(problems) > 1 and not every:
            typer.echo(f"and {len(problems) - 1} more problems (--all shows them)")
        typer.echo(f"{rows} rows checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def _latent_tables(found: dict[str, Any]) -> list[Any]:
    tables = []
    for name in ("kinds", "sizes"):
        table = _table(name, name[:-1], "clips")
        for value, count in found[name].items():
            table.add_row(plain_text(value), f"{count:,}")
        tables.append(table)
    more = _table("more", "what", "values")
    for name in ("rows", "layers", "sources", "prompts"):
        more.add_row(name, str(found[name]))
    more.add_row("MB", f"{found['bytes'] / 1e6:,.1f}")
    return [*tables, more]


def _tables(found: dict[str, Any]) -> list[Any]:
    from layerflow.corpus.columns import COLUMNS
    from layerflow.corpus.scores import meaning

    shares = {**found["kinds"], "all": {**found, "bytes": found["bytes"]["all"]}}
    shares["all"] |= {"clips": found["rows"], "sources": found["sources"]["count"]}
    kinds = _table("clips", "kind", "clips", "sources", "frames", "length", "MB")
    licences = _table("licences", "licence", "clips", "sources", "frames", "length", "MB")
    for table, rows in ((kinds, shares), (licences, found["licences"])):
        for name, share in rows.items():
            table.add_row(
                plain_text(name),
                *(f"{share[key]:,}" for key in ("clips", "sources", "frames")),
                _length(share["seconds"]),
                f"{share['bytes'] / 1e6:,.1f}",
            )
    points = ("count", "min", "p5", "p50", "p95", "max")
    scores = _table("scores", "score", *points)
    for name, values in found["scores"].items():
        scores.add_row(name, *(_short(values[point]) for point in points))
    said = _table("what the scores say", "score", "says")
    for name in found["scores"]:
        said.add_row(name, meaning(name))
    rejected = _table(f"rejected ({found['rejected']['rows']})", "stage: reason", "rows")
    for reason, count in found["rejected"]["reasons"].items():
        rejected.add_row(plain_text(reason), str(count))
    more = _table("more", "what", "values")
    own = [c.name for c in COLUMNS if c.counted and c.name in found and c.name != "recipe"]
    for name in ("size", "num_frames", "fps", *own):
        text = ", ".join(f"{value} ({count})" for value, count in found[name].items())
        more.add_row(name, plain_text(text))
    more.add_row("duplicate clips", str(found["duplicates"]["rows"]))
    for layer, prompt in found["prompts"].items():
        text = f"{prompt['distinct']} distinct, {prompt['empty']} empty"
        more.add_row(f"{layer} prompts", text)
    tables = (kinds, licences, scores, said, rejected, more)
    return [table for table in tables if table.row_count]


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        wide = index == 0 and len(columns) > 2
        table.add_column(
            column,
            justify="right" if index and column not in ("values", "says") else "left",
            overflow="fold",
            no_wrap=wide,
        )
    return table


def _length(seconds: float) -> str:
    """``42.0 s``, ``12.5 min`` or ``7.1 h``."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _short(value: float) -> str:
    """A number in at most 6 characters, so that all points of a score fit one line."""
    size = abs(value)
    if size >= 1000:
        return f"{value:.0f}" if size < 1e5 else f"{value:.0e}"
    if 0 < size < 0.0005:
        return f"{value:.0e}"
    return f"{value:.4f}" if size < 0.01 and value else f"{value:.3g}"


def plain_text(text: str) -> str:
    """Text from a corpus, without control characters and rich markup."""
    from rich.markup import escape

    from layerflow.locations import one_line

    return escape(one_line(text[:300]))


def _to_view(where: str, apart: bool) -> Path | str:
    """A folder on this disk, or the URL of a corpus, which is read by ranges. apart: beside others,
    which takes folders only; what is on the Hub is downloaded then."""
    from layerflow.corpus.published import fetched, is_remote

    if not is_remote(where):
        return fetched(where)
    folder = fetched(where) if apart else where
    if apart and isinstance(folder, str):
        raise ValueError(f"{where}: two are compared in local folders; copy it to one")
    return folder


def view(
    source: Annotated[
        str, typer.Argument(help="a corpus (also hf://datasets/...), latents, or samples")
    ],
    version: AtVersion = None,
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("report.html"),
    serve: Annotated[
        bool, typer.Option("--serve", help="serve the whole corpus on 127.0.0.1 instead")
    ] = False,
    port: Annotated[int, typer.Option(help="port of --serve; 0: a free one")] = 8000,
    limit: Annotated[int, typer.Option(help="clips in a written page, chosen evenly")] = 48,
    against: Annotated[
        str | None, typer.Option(help="another of these: clips of the same ids side by side")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="model folder whose autoencoder decodes latents; none: false colours"),
    ] = None,
) -> None:
    """One self-contained page: layers playing side by side, scores, filters, rejected rows."""
    from layerflow.corpus.published import is_published, open_corpus
    from layerflow.corpus.validate import refuse_unpackable

    folder = _to_view(at_version(source, version), against is not None)
    other = None if against is None else Path(_to_view(against, True))
    for one in (folder, other):
        if one is not None and is_published(one):
            refuse_unpackable(open_corpus(one))
    if serve:
        from pipelines.view.server import serve as serve_page

        signal.signal(signal.SIGINT, signal.default_int_handler)  # its end, not an interruption
        serve_page(folder, port=port, model=model, against=other)
        return
    from pipelines.view.page import write_report

    for path in write_report(folder, out, limit=limit, model=model, against=other):
        typer.echo(str(path))


def filter_(
    corpus: CorpusPath,
    out: OutPath,
    version: AtVersion = None,
    where: Annotated[
        list[str] | None, typer.Option(help="such as 'flicker<0.02 and ghost<5'; repeatable")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="keep only this kind; repeatable")] = None,
    keep_unknown: Annotated[
        bool, typer.Option("--keep-unknown", help="keep rows that have no such score")
    ] = False,
    without: Annotated[
        Path | None, typer.Option(help="a text file of ids to leave out, one a line")
    ] = None,
) -> None:
    """A new corpus of the rows whose stored values pass; nothing is decoded."""
    from layerflow.corpus.derive import filter_corpus
    from layerflow.corpus.published import open_corpus

    opened = open_corpus(corpus, version)
    listed = without.read_text().split() if without is not None else ()
    chosen: Any = {"where": where or (), "kinds": kind or (), "keep_unknown": keep_unknown}
    _show(filter_corpus(opened, out, without=listed, **chosen))


def merge(
    corpora: Annotated[
        list[str],
        typer.Argument(help="corpus folders, or hf://datasets/NAMESPACE/NAME", metavar="CORPUS..."),
    ],
    out: OutPath,
) -> None:
    """One new corpus of all rows; of rows with the same id the first stays."""
    from layerflow.corpus.derive import merge_corpora
    from layerflow.corpus.published import open_corpus

    _show(merge_corpora([open_corpus(path) for path in corpora], out))


def split(
    corpus: CorpusPath,
    out: Annotated[Path, typer.Option(help="folder to make one corpus per split in")],
    version: AtVersion = None,
    fractions: Annotated[str, typer.Option(help="names and shares")] = "train=0.9,validation=0.1",
    seed: Annotated[int, typer.Option(help="the draw follows from it")] = 0,
) -> None:
    """Splits that keep all clips of one foreground source together."""
    from layerflow.corpus.derive import split_corpus
    from layerflow.corpus.published import open_corpus
    from layerflow.corpus.splits import parse_fractions

    opened = open_corpus(corpus, version)
    made, assignment = split_corpus(opened, out, parse_fractions(fractions), seed=seed)
    for derived in made.values():
        _show(derived)
    typer.echo(
        f"{assignment.groups} groups of clips were kept together; "
        f"{assignment.shared_backgrounds} background sources are in more than one split"
    )


def retry(
    corpus: CorpusPath,
    out: OutPath,
    gate: Annotated[
        str | None, typer.Option(help="another quality gate for mined clips; default: as before")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="tasks at a time; default: all CPUs; 0: this process")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """A new corpus with what rejected rows give when their job does them again."""
    from pipelines.retry import run_retry

    retried = run_retry(Path(corpus), out, gate=gate, workers=workers, quiet=quiet)
    typer.echo(f"{retried.replayed} rejected rows replayed, {retried.gained} clips gained")
    _show(retried.derived)


def _show(derived: Derived) -> None:
    typer.echo(f"{derived.out}: {derived.rows} rows, {derived.left_out} in rejected/")
    for reason, count in derived.reasons.items():
        typer.echo(f"  {count} x {reason}")


COMMANDS = (validate, stats, view, filter_, merge, split, retry)
