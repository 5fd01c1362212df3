"""Corpora and latents on disk: tables, checks, statistics, derived and published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerflow.lazy import lazy_names

if TYPE_CHECKING:
    from layerflow.corpus.published import open_corpus
    from layerflow.corpus.table import Corpus

__all__ = ["Corpus", "open_corpus"]
__getattr__ = lazy_names(
    __name__,
    {"Corpus": "layerflow.corpus.table", "open_corpus": "layerflow.corpus.published"},
)
