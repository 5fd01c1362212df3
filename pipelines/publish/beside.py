"""What lies beside the card: licences by source, pictures of the scores, Croissant metadata."""

from __future__ import annotations

from collections.abc import Iterator

from layerflow.corpus.stats import read_batches, small_rows
from layerflow.corpus.table import Corpus
from pipelines.publish.card import CardFacts, card_metadata, licence_table
from pipelines.publish.croissant import make_croissant
from pipelines.publish.pictures import score_picture


def described(corpus: Corpus, facts: CardFacts) -> Iterator[tuple[str, bytes]]:
    """Name and content of every such file."""
    yield "LICENSE.md", licence_table(small_rows(corpus)).encode()
    picture = score_picture(read_batches(corpus, ["quality"]))
    if picture:
        yield "scores.png", picture
    yield "croissant.json", make_croissant(facts, card_metadata(facts, {})["license"])
