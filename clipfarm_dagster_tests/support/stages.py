"""A stage of a corpus over a ledger that a test has opened."""

from __future__ import annotations

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.ledger.ledger import Ledger


def opened(corpus: Corpus, ledger: Ledger) -> StageCorpus:
    """The stage of `ledger`, as `Corpus.stage` would open it."""
    return StageCorpus(ledger.stage, corpus.settings, corpus.store, ledger)
