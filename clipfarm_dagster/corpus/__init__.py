"""One installation's corpus: its store, metadata and ledgers, and what needs work in it."""

from clipfarm_dagster.corpus.corpus import Corpus

__all__ = ["Corpus"]
