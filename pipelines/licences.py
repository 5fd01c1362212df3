"""What the licences on record allow: may these clips be redistributed, and under which terms.

A layered clip is an adaptation of its sources, so a licence that forbids derivatives forbids
sharing it. Texts that are not known are neither allowed nor forbidden: they are named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from layerflow.stats import NO_LICENCE

# Licence identifiers of the Hub, by SPDX identifier in lower case.
HUB_LICENCES = {
    **{name: name for name in ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "unlicense")},
    **{name: name for name in ("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0")},
    **{name: name for name in ("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0")},
    **{name: name for name in ("cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0")},
    **{name: name for name in ("cc-by-nc-sa-4.0", "odc-by", "odbl", "pddl", "gpl-3.0")},
    "public domain": "unknown",
}
FORBIDDING = re.compile(
    r"all rights reserved|proprietary|confidential|copyrighted"
    r"|no[nt]?[- ]?(?:be )?redistribut|no redistribution|do not (?:re)?distribute"
    r"|\bnd\b|no ?deriv|internal use|personal use|evaluation only|royalty[- ]managed|editorial",
    re.IGNORECASE,
)
NON_COMMERCIAL = re.compile(r"\bnc\b|non-?\s?commercial|research only|academic", re.IGNORECASE)
SHARE_ALIKE = re.compile(r"\bsa\b|share-?\s?alike|\bgpl|odbl", re.IGNORECASE)


@dataclass(frozen=True)
class LicenceReport:
    """counts: clips by licence. forbidding: those of them that forbid redistribution.
    unstated: clips without a licence; unstated_sources: where they come from (at most 20)."""

    counts: dict[str, int]
    forbidding: dict[str, int]
    unstated: int
    unstated_sources: list[str]

    @property
    def non_commercial(self) -> bool:
        return any(NON_COMMERCIAL.search(name) for name in self.counts)

    @property
    def share_alike(self) -> bool:
        return any(SHARE_ALIKE.search(name) for name in self.counts)


def normal(licence: str) -> str:
    """A licence text as an identifier is written: ``CC BY 4.0`` -> ``cc-by-4.0``."""
    text = re.sub(r"[\s_]+", "-", licence.strip().lower())
    text = re.sub(r"^creative-commons-", "cc-", text)
    return re.sub(r"^cc-?0(-1\.0)?$", "cc0-1.0", text)


def hub_licence(licence: str) -> str | None:
    """The Hub's identifier of a licence, or None when the Hub has none for it."""
    return HUB_LICENCES.get(normal(licence))


def forbids(licence: str) -> bool:
    """Whether a licence text says that the clip may not be redistributed."""
    return bool(FORBIDDING.search(licence.replace("-", " ")) or FORBIDDING.search(licence))


def review(rows: Iterable[Mapping[str, Any]]) -> LicenceReport:
    """Licences of corpus rows (media cells are not needed)."""
    counts: Counter[str] = Counter()
    unstated: Counter[str] = Counter()
    for row in rows:
        licence = (row["origin"]["licence"] or "").strip()
        counts[licence or NO_LICENCE] += 1
        if not licence:
            unstated[row["origin"]["uri"]] += 1
    return LicenceReport(
        dict(sorted(counts.items())),
        {name: count for name, count in sorted(counts.items()) if forbids(name)},
        sum(unstated.values()),
        [uri for uri, _ in unstated.most_common(20)],
    )


def check_allowed(report: LicenceReport, *, private: bool, acknowledged: bool) -> None:
    """Raises ValueError when clips forbid redistribution, unless private and acknowledged."""
    if not report.forbidding or (private and acknowledged):
        return
    named = ", ".join(f"{name[:80]!r} ({count})" for name, count in report.forbidding.items())
    raise ValueError(
        f"{sum(report.forbidding.values())} clips have a licence that forbids redistribution: "
        f"{named}. Leave them out with `layerflow filter CORPUS --where 'licence != ...'`, or give "
        "--private and --acknowledge-licences if you have the right to keep them there"
    )
