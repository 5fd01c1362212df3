"""``croissant.json``: the repository's tables, fields and files in the Croissant format (1.0).

The form is that of http://mlcommons.org/croissant/1.0. Every column of the Parquet files is a
field: a struct has a field for each of its parts, a list says that it is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from layerflow.corpus.columns import COLUMNS
from layerflow.corpus.scores import meaning

if TYPE_CHECKING:
    from pipelines.publish.card import CardFacts
from pipelines.publish.layout import patterns

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        name: f"cr:{name}"
        for name in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty"),
            *("fileObject", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key"),
            *("md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
            *("replace", "samplingRate", "separator", "source", "subField", "transform"),
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
}
REPO = "repo"
TYPES: tuple[tuple[Any, str], ...] = (
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_int32, "cr:Int32"),
    (pa.types.is_int64, "cr:Int64"),
    (pa.types.is_float32, "cr:Float32"),
    (pa.types.is_float64, "cr:Float64"),
)


def make_croissant(facts: CardFacts, licence: Any) -> bytes:
    """The file, from the facts of a card. licence: as the card's metadata say."""
    url = f"https://huggingface.co/datasets/{facts.repo_id}"
    name = facts.repo_id.rpartition("/")[2]
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "@id": name,
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"{facts.stats['rows']} layered clips: a foreground with its alpha, a clean "
        "background and the blended scene that they make, with captions.",
        "url": url,
        "license": licence,
        "keywords": ["layered video", "matting", "compositing"],
        "version": f"{facts.made.get('version') or 1}.0.0",
        "distribution": [_repository(url), *map(_files, facts.configs)],
        "recordSet": [_records(config.name, config.features) for config in facts.configs],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _repository(url: str) -> dict[str, Any]:
    """The repository; Croissant asks for a sha256 of every file object, and git has none."""
    return {
        "@type": "cr:FileObject",
        "@id": REPO,
        "name": REPO,
        "description": "The git repository on the Hub.",
        "contentUrl": url,
        "encodingFormat": "git+https",
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _files(config: Any) -> dict[str, Any]:
    found = [p for item in config.files.items() for p in patterns(config.folder, *item)]
    return {
        "@type": "cr:FileSet",
        "@id": f"{config.name}-files",
        "name": f"{config.name}-files",
        "description": f"Parquet files of the configuration {config.name}.",
        "containedIn": {"@id": REPO},
        "encodingFormat": "application/x-parquet",
        "includes": found if len(found) > 1 else found[0],
    }


def _records(name: str, features: Any) -> dict[str, Any]:
    schema = features.arrow_schema
    media = {column for column in schema.names if _is_media(schema.field(column))}
    stills = any(type(feature).__name__ == "Image" for feature in features.values())
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            _media(name, field.name, stills)
            if field.name in media
            else _field(f"{name}/{field.name}", field, f"{name}-files", field.name, [])
            for field in schema
        ],
    }


def _is_media(field: pa.Field) -> bool:
    return pa.types.is_struct(field.type) and [part.name for part in field.type] == [
        "bytes",
        "path",
    ]


def _media(records: str, column: str, stills: bool) -> dict[str, Any]:
    """A column of encoded media: what is described is the file that a cell holds."""
    return {
        "@type": "cr:Field",
        "@id": f"{records}/{column}",
        "name": column,
        "description": _holds(column),
        "dataType": "sc:ImageObject" if stills else "sc:VideoObject",
        "source": _source(f"{records}-files", column, ["bytes"]),
    }


def _field(
    id: str, field: pa.Field, files: str, column: str, path: Sequence[str]
) -> dict[str, Any]:
    """A column or a part of one. path: names of the parts that lead to it."""
    kind, repeated = field.type, False
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, repeated = kind.value_type, True
    told: dict[str, Any] = {"@type": "cr:Field", "@id": id, "name": field.name}
    if not path:
        told["description"] = _holds(column)
    elif column == "quality":
        told["description"] = meaning(field.name)
    if repeated:
        told["repeated"] = True
    if pa.types.is_struct(kind):
        parts = list(kind)
        told["subField"] = [
            _field(f"{id}/{part.name}", part, files, column, [*path, part.name]) for part in parts
        ]
        return told
    known = (name for test, name in TYPES if test(kind))
    told["dataType"] = next(known, "sc:Text")
    told["source"] = _source(files, column, path)
    return told


def _source(files: str, column: str, path: Sequence[str]) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": files}, "extract": {"column": column}}
    if path:
        source["transform"] = [{"jsonPath": name} for name in path]
    return source


def _holds(column: str) -> str:
    known = {one.name: one.holds for one in COLUMNS}
    if column in known:
        return known[column]
    return "a small video of all layers" if column == "preview" else meaning(column) or column
