"""One installation's corpus: its store, metadata and ledgers, and what needs work in it."""

from clipfarm_dagster.corpus.corpus import Corpus
from clipfarm_dagster.corpus.stage_corpus import StageCorpus

__all__ = ["Corpus", "StageCorpus"]
