"""What the licences on record allow: may these clips be redistributed, and under which terms.

A layered clip is an adaptation of its sources, so a licence that forbids derivatives forbids
sharing it. Texts that are not known are neither allowed nor forbidden: they are named.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerflow.corpus.changes.tombstones import normal_licence
from layerflow.corpus.stats import NO_LICENCE
from layerflow.locations import clean_uri, printable

# Licence identifiers of the Hub, by SPDX identifier in lower case.
HUB_LICENCES = {
    **{name: name for name in ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "unlicense")},
    **{name: name for name in ("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0")},
    **{name: name for name in ("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0")},
    **{name: name for name in ("cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0")},
    **{name: name for name in ("cc-by-nc-sa-4.0", "odc-by", "odbl", "pddl", "gpl-3.0")},
    "public domain": "unknown",
}
# Signs between words are blanks when these are looked for; see ``_plain``.
_NO = r"\b(?:no|not|non|never|cannot|(?:can|don|mustn) t)"
_BETWEEN = r"(?: (?:for|be|to|may|must|allowed|permitted|authori[sz]ed|publicly|further|any))"
FORBIDDING = re.compile(
    r"all ?rights ?reserved|alle rechte vorbehalten|tous droits r[e\u00e9]serv"
    r"|derechos reservados|direitos reservados|diritti riservati|\u7248\u6743\u6240\u6709"
    r"|proprietary|confidential|copyrighted|vocab inc(?![a-z])|standard youtube licen"
    r"|no[nt]? ?(?:be )?redistribut"
    rf"|{_NO}{_BETWEEN}{{0,3}} (?:(?:re ?)?distribut|shar(?:e|ed|ing)\b(?! ?alike))"
    r"|(?:re)?distribution(?: [a-z]+){0,4} (?:not|prohibited|forbidden)\b"
    r"|(?<![a-z\d])(?:cc ?)?(?:by ?)?(?:nc ?)?nd(?![a-z])|(?:no|without) ?deriv"
    r"|internal use|personal use|evaluation only|(?:royalty|rights) managed|editorial",
    re.IGNORECASE,
)
NON_COMMERCIAL = re.compile(
    r"(?<![a-z])(?:cc ?)?(?:by ?)?nc(?: ?(?:nd|sa))?(?![a-z])|non ?commercial|research only"
    r"|academic",
    re.IGNORECASE,
)
SHARE_ALIKE = re.compile(
    r"(?<![a-z])(?:cc ?)?(?:by ?)?(?:nc ?)?sa(?![a-z])|share ?alike|\bgpl|odbl", re.IGNORECASE
)
# Names of columns and keys, in lower case; a licence plate and a licensee are none.
COLUMN = re.compile(
    r"(?!.*(?:plate|driv(?:er|ing))).*licen[cs](?:ing|e(?![der])).*"
    r"|(?:.*[^a-z])?(?:rights|copyrights?|(?:usage|reuse)[^a-z]?terms|terms[^a-z]?of[^a-z]?use)"
    r"(?:[^a-z]?(?:statement|notice|status|text|info|link|ur[il]))?",
    re.DOTALL,
)
UNSAID = frozenset({"unknown", "none", "null", "nan", "n/a", "na", "-", "?", "other"})
MAX_CHARS = 2000
MAX_DEPTH = 6


def is_licence_column(name: str) -> bool:
    """Whether a column or key holds a licence: ``licence``, ``video_license``, ``rights``, ..."""
    return COLUMN.fullmatch(name.strip(" \ufeff").lower()) is not None


def licence_in(content: Any, *, deep: bool = True) -> str | None:
    """The licence that a row or JSON value states, under every name that a licence may have.

    deep: in the objects and lists inside it, too. Several are joined with "; ": all of them hold.
    None when nothing is stated. Raises ValueError for a value that cannot be read, since what it
    forbids is not known.
    """
    stated: list[str | None] = []
    left = deque([content])
    while left:
        entry = left.popleft()
        if isinstance(entry, Mapping):
            for name, value in entry.items():
                if is_licence_column(str(name)):
                    if isinstance(value, bool) and str(name).lower() not in ("licence", "license"):
                        continue  # license_checked: true
                    stated.append(licence_text(value))
                elif deep:
                    left.append(value)
        elif deep and isinstance(entry, list | tuple):
            left.extend(entry)
    return joined(stated)


def joined(licences: Iterable[str | None]) -> str | None:
    """Several licences that all hold as one text, each once; None when there is none."""
    parts = [part for text in licences if text for part in text.split("; ")]
    unique = {normal_licence(part): part for part in reversed(parts)}
    return (
        "; ".join(part for part in dict.fromkeys(parts) if unique[normal_licence(part)] == part)
        or None
    )


def all_of(stated: Sequence[str | None], what: str = "licence") -> str | None:
    """The licence (or attribution) of what is made of several sources: all of them hold.

    A licence that one source does not state is said to be so, where others state one.
    """
    held = joined(stated)
    missing = what == "licence" and held is not None and not all(stated)
    return joined([held, NO_LICENCE]) if missing else held


def licence_text(value: Any) -> str | None:
    """A licence as text, of a text, a list, a struct, JSON text of these, or UTF-8 bytes.

    None for nothing (null, NaN, "", []). Raises ValueError for what cannot be read.
    """
    return joined(_texts(value, 0))


def _texts(value: Any, depth: int) -> Iterator[str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if depth > MAX_DEPTH:
        raise ValueError("the licence is nested too deeply")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("the licence cannot be read: it is no UTF-8 text") from error
    if isinstance(value, str):
        yield from _of_text(value, depth)
    elif isinstance(value, Mapping):
        yield from _of_struct(value, depth)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, depth + 1)
    else:
        raise ValueError(f"the licence {str(value)[:80]!r} cannot be read: it is no text")


def _of_text(text: str, depth: int) -> Iterator[str]:
    if "\0" in text:
        raise ValueError("the licence cannot be read: it holds NUL characters")
    text = " ".join(printable(text).replace("\ufeff", "").split())
    if len(text) > MAX_CHARS:
        raise ValueError(f"the licence cannot be kept: it is over {MAX_CHARS} characters")
    if text[:1] in ("[", "{") and text[-1:] in ("]", "}"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, list | dict):
            yield from _texts(content, depth + 1)
            return
    if text:
        yield text


def _of_struct(entry: Mapping[str, Any], depth: int) -> Iterator[str]:
    """All texts of a struct; numbers only count as what they are where a text stands beside."""
    found: list[str] = []
    odd = ""
    for name, value in entry.items():
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if plain and str(name).lower() in ("id", "version", "index"):
            odd = str(value)
            continue
        found += _texts(value, depth + 1)
    if odd and not found:
        raise ValueError(f"the licence {odd!r} cannot be read: it is no text")
    yield from found


@dataclass(frozen=True)
class LicenceReport:
    """counts: clips by licence. forbidding: those of them that forbid redistribution.
    unstated: clips without a licence, or with one of which a part is not known; unstated_sources:
    where they come from (at most 20)."""

    counts: dict[str, int]
    forbidding: dict[str, int]
    unstated: int
    unstated_sources: list[str]

    @property
    def non_commercial(self) -> bool:
        return any(NON_COMMERCIAL.search(_plain(name)) for name in self.counts)

    @property
    def share_alike(self) -> bool:
        return any(SHARE_ALIKE.search(_plain(name)) for name in self.counts)


def hub_licence(licence: str) -> str | None:
    """The Hub's identifier of a licence, or None when the Hub has none for it."""
    return HUB_LICENCES.get(normal_licence(licence))


def hub_licences(licence: str) -> set[str | None]:
    """The Hub's identifiers of all parts of a joined licence."""
    return {hub_licence(part) for part in licence.split("; ")}


def _plain(licence: str) -> str:
    """Words with one blank between; signs that look alike are one, invisible ones are none."""
    shown = (sign for sign in licence if unicodedata.category(sign) != "Cf")
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", "".join(shown)))


def forbids(licence: str) -> bool:
    """Whether a licence text, or one part of it, says that the clip may not be redistributed.

    Of alternatives ("MIT OR CC-BY-ND-4.0") the strictest counts: nobody has chosen one.
    """
    return FORBIDDING.search(_plain(licence)) is not None


def is_unsaid(licence: str) -> bool:
    """Whether a text, or one part of it, says that the licence is not known (``unknown``)."""
    parts = (part.strip(" .").lower() for part in licence.split("; "))
    return any(part in UNSAID or part == NO_LICENCE for part in parts)


def asks_of(licence: str | None) -> set[str]:
    """What a licence forbids or asks: ``no redistribution``, ``non-commercial``, ``share alike``;
    ``not stated`` where nobody says."""
    if not licence or is_unsaid(licence):
        return {NO_LICENCE}
    found = {
        "no redistribution": forbids(licence),
        "non-commercial": NON_COMMERCIAL.search(_plain(licence)) is not None,
        "share alike": SHARE_ALIKE.search(_plain(licence)) is not None,
    }
    return {name for name, met in found.items() if met}


def review(rows: Iterable[Mapping[str, Any]]) -> LicenceReport:
    """Licences of corpus rows (media cells are not needed)."""
    counts: Counter[str] = Counter()
    unstated: Counter[str] = Counter()
    for row in rows:
        licence = (row["origin"]["licence"] or "").strip()
        counts[licence or NO_LICENCE] += 1
        if not licence or is_unsaid(licence):
            unstated[clean_uri(row["origin"]["uri"])] += 1
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
