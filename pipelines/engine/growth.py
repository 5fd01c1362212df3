"""How a corpus gets its versions: what a job may do with its folder, and the commit that ends it.

    claim -> the job's units -> which rows stay -> shards, by many workers -> one file of the log

Until the log has its new file the corpus is what it was before; from then on it is the new version.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.corpus import log
from layerflow.corpus.changes.tombstones import Tombstones, left_out
from layerflow.corpus.log import Shard, Version
from layerflow.corpus.stats import id_number, id_numbers, tallied
from layerflow.corpus.store import Store
from layerflow.corpus.table import FORMAT_VERSION, REJECTED_SCHEMA, Corpus, rejected_row
from layerflow.corpus.writer import (
    SMALL_ROWS_PER_BATCH,
    record_batches,
    regrouped,
    settle,
    write_shard,
)
from layerflow.documents import parse_json, read_json
from layerflow.files import write_json
from pipelines.engine.cutting import Piece, cut, make_shards
from pipelines.engine.ledger import adopted, done_units, sweep_shards, write_done
from pipelines.engine.recipe import Recipe, Summary, difference, unit_key
from pipelines.engine.replay import remember
from pipelines.engine.runner import Place
from pipelines.engine.staging import InfrastructureError, Staging
from pipelines.engine.workers import Pool, Unit

ROWS, INDEX, REJECTED = "rows.arrow", "index.arrow", "rejected.arrow"
CORPUS, STAGING = "corpus.json", "staging"
INFO: dict[str, type] = {"state": str, "plan": str}
COUNTS: dict[str, type] = {"rows": int, "rejected": int, "units": int, "reasons": dict}
Refuse = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Growth:
    """One job's way from the version ``base`` of a corpus, or from nothing, to the next one.

    units: those that are to run. plan: a name of all that were asked for.
    """

    store: Store
    recipe: Recipe
    schema: pa.Schema
    units: Sequence[Unit]
    plan: str
    base: Version | None
    append: bool
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        out: Path | str,
        recipe: Recipe,
        units: Sequence[Unit],
        schema: pa.Schema,
        *,
        append: bool,
    ) -> Growth:
        """append: whether a corpus that is there may grow. Raises ValueError for a damaged log."""
        store = Store(out)
        plan = unit_key([unit.key for unit in units])
        base = log.newest(store)
        if append and base is None:
            base = adopted(store, recipe, plan, units)
        if append and base is not None:
            known = done_units(store, base, recipe.hash)
            units = [unit for unit in units if unit.key not in known]
        return cls(store, recipe, schema, units, plan, base, append and base is not None)

    def place(self, inputs: Sequence[str]) -> Place:
        """Where the job stages its units."""
        name = f"{STAGING}-{self.recipe.hash}" if self.append else STAGING
        here = self.store.local
        return Place(
            here / name if here is not None else self.store.location(name),
            here / ".lock" if here is not None else None,
            f"{self.store}: another job is writing this corpus",
            inputs,
            frozenset({ROWS}),
            frozenset({INDEX, REJECTED}),
        )

    # ---- what is there already ---------------------------------------------------------------

    def claim(self) -> Summary | None:
        """Start or continue; a Summary when there is nothing to do.

        Raises ValueError when the folder holds something else.
        """
        latest = log.newest(self.store)
        if (latest and latest.number) != (self.base and self.base.number) and self.base:
            raise ValueError(f"{self.store}: another job has just added a version; start again")
        if self.base is None:
            found = self._claim_unlogged()
        elif self.append:
            self._check_columns()
            found = None if self.units else self._summary(self.base, 0)
        else:
            found = self._claim_finished(self.base)
        if found is None and self.store.local is not None:
            remember(self.store.local, self.recipe.kind, self.recipe.hash, self.recipe.given)
        if found is not None and self.base is not None:
            settle(self.store, self.base, self._base().schema, REJECTED_SCHEMA)
            sweep_shards(self.store)
        return found

    def _base(self) -> Corpus:
        assert self.base is not None
        return Corpus.open(self.store.where, self.base.number)

    def _check_columns(self) -> None:
        there = self._base().schema
        if not there.equals(self.schema):
            names = sorted(set(there.names) ^ set(self.schema.names))
            raise ValueError(
                f"{self.store} has columns of another version{f' ({names})' if names else ''}: "
                "choose another --out, then `layerflow merge` them"
            )

    def _claim_finished(self, base: Version) -> Summary:
        self._refuse_other(base.info)
        if self.plan not in (base.info.get("plan"), *base.info.get("plans", ())):
            raise ValueError(
                f"{self.store} is complete, but was made from other inputs; choose another --out, "
                "or add to it with --append"
            )
        return self._summary(base, None)

    def _claim_unlogged(self) -> Summary | None:
        """As ``claim`` of a folder without a log: new, unfinished, or of an older toolkit."""
        info = self._said()
        where = f"{self.store}/{CORPUS}"
        if info is None:
            names = {name.partition("/")[0] for name in self.store.names()}
            if self.store.local is not None and self.store.local.is_dir():
                names |= {path.name for path in self.store.local.iterdir()}
            others = [name for name in names if name[0] != "." and name != STAGING]
            if others:
                raise ValueError(
                    f"{self.store} is not empty and holds no corpus of ours (found "
                    f"{sorted(others)[:3]}); choose another --out"
                )
            info = self._info("running")
            self._say(info)
        self._refuse_other(info)
        _check_info(where, info)
        if info["state"] != "complete":
            return None
        if info["plan"] != self.plan:
            raise ValueError(
                f"{self.store} is complete, but was made from other inputs; choose another --out, "
                "or add to it with --append"
            )
        counts = (info["rows"], info["rejected"], info["reasons"], 0.0, info["units"])
        return Summary(self.store.where, *counts)

    def _said(self) -> dict[str, Any] | None:
        """``corpus.json``; None without."""
        if self.store.local is not None:
            path = self.store.local / CORPUS
            return read_json(path) if path.is_file() else None
        try:
            return parse_json(self.store.read(CORPUS), f"{self.store}/{CORPUS}")
        except FileNotFoundError:
            return None

    def _say(self, info: Mapping[str, Any]) -> None:
        if self.store.local is not None:
            write_json(self.store.local / CORPUS, info)
        else:
            self.store.put(CORPUS, json.dumps(info, indent=2, sort_keys=True).encode())

    def _refuse_other(self, info: Mapping[str, Any]) -> None:
        if info.get("recipe") != self.recipe.hash:
            raise ValueError(
                f"{self.store} already holds a corpus of another recipe; choose another --out, or "
                f"add to it with --append.\n{difference(info, self.recipe)}"
            )

    def _info(self, state: str, **more: Any) -> dict[str, Any]:
        return {
            "kind": self.recipe.kind,
            "recipe": self.recipe.hash,
            "options": self.recipe.options,
            "version": self.recipe.version,
            "format_version": FORMAT_VERSION,
            "plan": self.plan,
            "state": state,
            **more,
        }

    def _summary(self, version: Version, added: int | None, resumed: int | None = None) -> Summary:
        info = version.info
        seconds = 0.0 if resumed is None else time.monotonic() - self.started
        done = info.get("units", 0) if resumed is None else resumed
        counts = version.rows, sum(shard.rows or 0 for shard in version.rejected)
        reasons = dict(info.get("reasons", {}))
        return Summary(self.store.where, *counts, reasons, seconds, done, added)

    # ---- the commit --------------------------------------------------------------------------

    def commit(self, refuse: Refuse | None, pool: Pool, staging: Staging, resumed: int) -> Summary:
        """Make the staged units the next version, their rows in the order of the units.

        Raises Damaged when units changed since they were staged, InfrastructureError when another
        job was faster, or no input could be opened.
        """
        reasons: Counter[str] = Counter()
        pieces, duplicates = self._pieces(refuse, staging)
        keys = [unit.key for unit in self._ordered()]
        refused = chain.from_iterable(each for each, _ in staging.batches_of(keys, REJECTED))
        every = chain(refused, record_batches(duplicates, REJECTED_SCHEMA))
        rejected = self._rejected(tallied(self._tombstones.cleaned(every), reasons))
        if not pieces and pool.workers != 0 and not pool.accept_lost:
            _stop_if_blind(str(self.store), reasons)
        out = str(self.store.where)
        made = make_shards(cut(pieces), out, self.schema, staging, pool)
        version = self._version(made, rejected, reasons)
        if not log.commit(self.store, version):
            raise InfrastructureError(
                f"{self.store}: another job has added version {version.number}; start the same "
                "command again"
            )
        settle(self.store, version, self.schema, REJECTED_SCHEMA)
        sweep_shards(self.store)
        added = sum(shard.rows or 0 for shard in made) if self.append else None
        return self._summary(version, added, resumed)

    def _ordered(self) -> list[Unit]:
        return sorted(self.units, key=lambda unit: unit.order)

    def _pieces(
        self, refuse: Refuse | None, staging: Staging
    ) -> tuple[list[Piece], list[dict[str, Any]]]:
        """The rows that stay, unit by unit, and the rejected rows of those that repeat others."""
        pieces, duplicates = [], []
        earlier = self._earlier_ids()
        seen: dict[int, str] = {}  # ids as numbers and shared names: some 100 bytes a row
        ordered = self._ordered()
        indices = staging.batches_of([unit.key for unit in ordered], INDEX)
        for unit, (batches, record) in zip(ordered, indices, strict=True):
            rows = [row for batch in batches for row in batch.to_pylist()]
            drop = []
            for number, row in enumerate(rows):
                own = id_number(row["id"])
                removed = self._tombstones.refuses(row)
                if removed is not None:
                    drop.append(number)
                    duplicates.append(left_out(row, removed))
                    continue
                if own in seen:
                    why: str | None = f"the same content as {seen[own]}"
                elif _holds(earlier, own):
                    why = "the same content as a clip of an earlier version"
                else:
                    why = refuse(row) if refuse is not None else None
                if why is None:
                    seen[own] = sys.intern(row["origin"]["uri"])
                else:
                    drop.append(number)
                    duplicates.append(_duplicate(row, why, self.recipe))
            if len(drop) < len(rows):
                about = record[ROWS]
                folder = staging.location(unit.key, "").rstrip("/")
                sums = about["bytes"], about["sum"]
                pieces.append(Piece(unit.key, folder, ROWS, *sums, tuple(drop)))
        return pieces, duplicates

    @cached_property
    def _tombstones(self) -> Tombstones:
        return Tombstones.of(self.store, self.base)

    def _earlier_ids(self) -> np.ndarray:
        return (
            np.sort(id_numbers(self._base())) if self.base is not None else np.zeros(0, np.uint64)
        )

    def _rejected(self, rows: Iterable[pa.RecordBatch]) -> tuple[Shard, ...]:
        """The tables of rejected rows, which may be many times the rows."""
        before = self.base.rejected if self.base is not None else ()
        batches = regrouped(rows, SMALL_ROWS_PER_BATCH)
        first = next(batches, None)
        if first is None and before:
            return before
        batches = chain(() if first is None else (first,), batches)
        shard = write_shard(self.store.below(log.REJECTED), batches, REJECTED_SCHEMA)
        return (*(one for one in before if one.rows), shard)

    def _version(
        self, made: Sequence[Shard], rejected: tuple[Shard, ...], reasons: Counter[str]
    ) -> Version:
        base = self.base
        before = base.shards if base is not None else ()
        if not made and not before:
            made = [write_shard(self.store, [], self.schema)]
        shards = (*(s for s in before if s.rows), *made) if made else before
        old = dict(base.info) if base is not None else {}
        info = self._info(
            "complete",
            rows=sum(shard.rows or 0 for shard in shards),
            rejected=sum(shard.rows or 0 for shard in rejected),
            reasons=dict(Counter(old.get("reasons", {})) + reasons),
            units=old.get("units", 0) + len(self.units),
        )
        if base is None:
            first = Version(1, self.recipe.kind, tuple(shards), rejected, info)
            return self._with_done(first)
        info["plans"] = [*old.get("plans", [old.get("plan")]), self.plan]
        step = f"{self.recipe.kind} --append"
        return self._with_done(base.next(step, shards=tuple(shards), rejected=rejected, info=info))

    def _with_done(self, version: Version) -> Version:
        name = write_done(self.store, self.recipe.hash, [unit.key for unit in self.units])
        return replace(version, done=(*version.done, name))


def _holds(sorted_ids: np.ndarray, number: int) -> bool:
    wanted = np.uint64(number)
    place = int(np.searchsorted(sorted_ids, wanted))
    return place < len(sorted_ids) and bool(sorted_ids[place] == wanted)


def _duplicate(row: dict[str, Any], reason: str, recipe: Recipe) -> dict[str, Any]:
    source = row["origin"]
    return rejected_row(
        source["uri"], "duplicates", reason, kind=row["kind"], recipe=recipe.hash,
        start=source["start"], end=source["end"],
    )  # fmt: skip


def _stop_if_blind(out: str, reasons: Counter[str]) -> None:
    """Raises InfrastructureError when no worker found any of the files that the driver listed."""
    if reasons and all("No such file" in reason for reason in reasons):
        raise InfrastructureError(
            f"{out}: stopped without a clip: the workers found none of {reasons.total()} inputs "
            f"({next(iter(reasons))}). Put them where every node sees them, or name "
            "them by URLs, and start the same command again; --accept-lost takes them as rejected"
        )


def _check_info(path: str, info: Mapping[str, Any]) -> None:
    """Raises ValueError when ``corpus.json`` says something else than this job writes."""
    fields = INFO | (COUNTS if info.get("state") == "complete" else {})
    wrong = [name for name, kind in fields.items() if type(info.get(name)) is not kind]
    if wrong:
        raise ValueError(f"{path} is damaged: its {wrong[0]} is wrong; choose another --out")
