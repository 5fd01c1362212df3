"""Where a file may lie that an input names, and the name under which it goes on record.

Whatever names another file (a row of a table, a sidecar, a matte beside its film, a link) is a
stranger's: ``is_inside`` and ``locate`` decide whether it may be opened, ``clean_uri`` and
``without_secrets`` what may be written of it.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

SCHEMES = frozenset(
    {"http", "https", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "hf"}
    | {"hdfs", "webhdfs"}
)
"""Schemes of URLs that a row of a table may name."""
LOCAL_SCHEMES = frozenset({"file", "local"})
# What tells one film of an address from another; everything else in a query may be a secret.
PLAIN_QUERY = frozenset(
    {"id", "v", "video", "videoid", "video_id", "clip", "file", "filename", "name", "path", "item"}
    | {"version", "versionid", "part", "page", "index", "t", "start", "end", "format", "alt"}
)
URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,40}://[^\s'\"<>`]+")
PORT = re.compile(r"[^:]*:\d*|\[[0-9A-Fa-f:.]*\](:\d*)?")
MAX_NAME_CHARS = 8192
HEAD_BYTES = 4096


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, with all its links followed, lies in a folder.

    A snapshot of the Hub's cache consists of links into the ``blobs`` folder of the same
    repository: those count as inside.
    """
    base = root.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a link that leads to itself
        return False
    if target.is_relative_to(base):
        return True
    parts = base.parts
    if "snapshots" not in parts:
        return False
    place = len(parts) - 1 - parts[::-1].index("snapshots")
    below_revision = len(parts) > place + 1
    repository = parts[place - 1].startswith(("datasets--", "models--", "spaces--"))
    return below_revision and repository and target.parent == Path(*parts[:place], "blobs")


def check_inside(path: Path, root: Path, what: str = "the folder") -> Path:
    """``path``. Raises ValueError when it leads out of ``root``."""
    if not is_inside(path, root):
        raise ValueError(f"{printable(path.name)!r} leads out of {what}")
    return path


def locate(name: str, root: Path, what: str = "the table's folder") -> str:
    """Where a row's file is: the URL as written, or an absolute path below ``root``.

    Raises ValueError for a path (or ``file://`` URL) that leads out of ``root``, links followed,
    and for a URL of a scheme that is not in ``SCHEMES``.
    """
    shown = repr(without_secrets(printable(name[:MAX_NAME_CHARS]))[:200])
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(f"{shown[:80]}... is longer than {MAX_NAME_CHARS} characters")
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
        raise ValueError(f"{shown} holds a control character")
    scheme, mark, rest = name.partition(":")
    # C:\x is a path of another machine; a name may hold a colon, but no scheme before it.
    if mark and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        if scheme.lower() in LOCAL_SCHEMES:
            name = unquote(re.sub(r"^//(localhost(?=/))?", "", rest, flags=re.IGNORECASE))
        elif rest.startswith(("//", ":")):
            if scheme.lower() not in SCHEMES or "::" in name.partition("?")[0]:
                allowed = ", ".join(sorted(SCHEMES))
                raise ValueError(f"{shown} is no URL that a row may name ({allowed})")
            return name
    plain = name.strip().replace("\\", "/")
    forms = [name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    chosen = next((form for form in forms if os.path.exists(root / form)), plain)
    path = Path(os.path.normpath(os.path.abspath(root / chosen)))
    if not is_inside(path, root):
        raise ValueError(f"{shown} leads out of {what}")
    return str(path)


def spellings(stem: str, suffixes: Iterable[str]) -> Iterator[str]:
    """The names of a stem with each of some suffixes, in the cases that programs write."""
    for suffix in suffixes:
        yield from (stem + suffix, stem + suffix.upper(), stem + suffix.title())


def below(path: Path, root: Path) -> str:
    """The uri of a local file: its place below ``root``, else its name alone (``escape_name``)."""
    at, base = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    for found, top in ((at, base), (at.parent.resolve() / at.name, base.resolve())):
        if found.is_relative_to(top):
            return escape_name(found.relative_to(top).as_posix())
    return escape_name(path.name)


def root_of(path: Path, uri: str) -> Path | None:
    """The folder below which a local file, or the files of a folder or sequence, have their uri."""
    name = Path(unescape_name(uri))
    for parent in path.parents:
        if parent / name == path or (parent / name) in path.parents:
            return parent
    folders = () if name.parent == Path() else path.parents
    return next((parent for parent in folders if parent / name.parent in path.parents), None)


def escape_name(name: str) -> str:
    """A file name as valid UTF-8, so that it can be told back.

    A byte that is not UTF-8 is written as U+FFFD and two hex digits, U+FFFD itself twice.
    """
    doubled = name.replace("�", "��")
    return re.sub("[\udc80-\udcff]", lambda m: f"�{ord(m[0]) - 0xDC00:02x}", doubled)


def unescape_name(name: str) -> str:
    """The file name that ``escape_name`` wrote."""

    def told(match: re.Match[str]) -> str:
        return "�" if match[1] == "�" else chr(0xDC00 + int(match[1], 16))

    return re.sub("�(�|[89a-f][0-9a-f])", told, name)


def printable(text: str) -> str:
    """A text that can be stored and printed: what is no valid Unicode in it is escaped."""
    return (
        re.sub("[\udc80-\udcff]", lambda m: f"�{ord(m[0]) - 0xDC00:02x}", text)
        .encode("utf-8", "replace")
        .decode("utf-8")
    )


def one_line(text: str) -> str:
    """A text without line ends, control characters and marks that turn its direction, each a
    blank: safe to show beside other texts."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def clean_uri(uri: str) -> str:
    """A URL without user, password, fragment, and whatever in its query may be a secret.

    Of a query only the names in ``PLAIN_QUERY`` stay. Other texts (paths) come back as they are.
    """
    if "::" in uri and "://" in uri:  # fsspec's chains: zip://a.mp4::https://...
        return "::".join(clean_uri(part) for part in uri.split("::"))
    scheme, mark, rest = uri.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return printable(uri)
    web = scheme.lower() in ("http", "https")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if ":" in host and not PORT.fullmatch(host) and "@" not in host:  # a password with / ? or #
        rest = rest.rpartition("@")[2] if "@" in rest else rest.replace(host, host.split(":")[0], 1)
    place, question, query = rest.partition("?")
    if web:
        place, query = place.partition("#")[0], query.partition("#")[0]
    host, slash, path = place.partition("/")
    host = host.rpartition("@")[2]
    if web:
        path = re.sub(r";[^/;=]+=[^/;]*|(?<=/)[^/]*\b(hmac|sig|signature|token)=[^/]*", "", path)
    kept = [
        (key, value)
        for key, value in parse_qsl(query, keep_blank_values=True)
        if key.lower() in PLAIN_QUERY and len(value) <= 200 and "://" not in value
    ]
    ending = f"?{urlencode(kept)}" if kept else ""
    if not web and "=" not in query:  # a sign of a bucket's key, not a query
        ending = question + query
    return printable(f"{scheme}://{host}{slash}{path}{ending}")


def without_secrets(text: str) -> str:
    """A text with every URL in it as ``clean_uri`` writes it."""
    cleaned = URL.sub(lambda match: clean_uri(match[0]), text)
    return re.sub(r"//[^\s/@'\":]{1,200}:[^\s/@'\"]{0,500}@", "//", cleaned)


def suffix_of(location: str) -> str:
    """The suffix of a path or URL, without a query."""
    name = urlsplit(location).path if "://" in location else location
    return Path(name).suffix[:16]
