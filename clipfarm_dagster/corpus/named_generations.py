"""Generations that a person names, by the first characters of their contract's id."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from clipfarm_dagster.corpus.corpus import Corpus
from clipfarm_dagster.corpus.stage_corpus import StageCorpus
from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.stages import Stage


def known_generations(opened: StageCorpus) -> list[str]:
    """Contract ids of the generations of a stage that have rows, that of the one that serves first."""
    dropped = () if opened.serving is None else opened.serving.dropped
    serving = opened.serving_id or opened.contract.id
    others = set(opened.ledger.generations()).difference(dropped, [serving])
    return [serving, *sorted(others)]


def find_generation(corpus: Corpus, stages: Collection[Stage], name: str) -> tuple[Stage, str]:
    """The one generation of some stages whose contract id begins with `name`: its stage and its contract id.

    Raises:
        LedgerError: there is none, or there are several; or a ledger cannot be read.
        StoreError: the store cannot be read.
    """
    with corpus.stages(stages) as opened:
        known = [(stage, i) for stage in stages for i in known_generations(opened[stage])]
    return choose_generation(known, name)


def choose_generation(known: Iterable[tuple[Stage, str]], name: str) -> tuple[Stage, str]:
    """The one of some generations whose contract id begins with `name`.

    Raises:
        LedgerError: there is none, or there are several.
    """
    known = list(known)
    found = [generation for generation in known if name and generation[1].startswith(name)]
    if len(found) == 1:
        return found[0]
    told = ", ".join(f"{contract_id} ({stage})" for stage, contract_id in found or known)
    problem = "several generations begin with" if found else "there is no generation"
    raise LedgerError(f"{problem} {name!r}; {'they are' if found else 'there are'} {told or 'none yet'}")
