"""`clipfarm migrate`: which generation of vectors serves, and how another one comes to."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clipfarm_dagster.cli import comparing, migrate_status
from clipfarm_dagster.cli.migrate_status import coverage_told, size_told
from clipfarm_dagster.cli.output import (
    Json,
    console,
    dagster_instance,
    examples,
    open_corpus,
    print_json,
)
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.corpus.named_generations import choose_generation, find_generation
from clipfarm_dagster.errors import MigrationError, SettingsError
from clipfarm_dagster.maintenance import migration
from clipfarm_dagster.maintenance.dropping import drop_generation
from clipfarm_dagster.maintenance.generations import Generation, stage_generations
from clipfarm_dagster.maintenance.readiness import readiness
from clipfarm_dagster.stages import Stage

group = typer.Typer(
    help="Change a model without a gap: see how far its vectors are, compare, switch, go back, drop.",
    epilog=examples("clipfarm migrate status", "clipfarm migrate compare text --picture compared.png"),
    no_args_is_help=True,
)

StageName = Annotated[Stage, typer.Argument(help="The stage.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    migrate_status.register(group)
    comparing.register(group)
    group.command("cut-over", epilog=examples("clipfarm migrate cut-over text"))(cut_over)
    group.command("roll-back", epilog=examples("clipfarm migrate roll-back text"))(roll_back)
    group.command(epilog=examples("clipfarm migrate drop text CONTRACT_ID --yes"))(drop)
    app.add_typer(group, name="migrate")


def cut_over(
    stage: StageName,
    generation: Annotated[
        str,
        typer.Argument(
            metavar="[GENERATION]",
            help="Its contract id, or how that begins; by default what the settings ask for.",
        ),
    ] = "",
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial",
            help="Also if something is missing; served videos without a vector in it are lost to readers"
            " until they are embedded.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Let another generation serve. The one that does is kept, so that `roll-back` leads back to it."""
    corpus = open_corpus()
    named = find_generation(corpus, [stage], generation)[1] if generation else None
    found = readiness(corpus, stage, named)
    if found is not None and found.missing and not allow_partial:
        raise MigrationError(
            f"generation {found.contract_id} of {stage} vectors does not serve: {'; '.join(found.missing)}."
            " --allow-partial lets it serve as it is"
        )
    if found is None:
        migration.finish_cut_over(corpus, stage)
    else:
        migration.cut_over(corpus, stage, found.contract_id)
    _tell_dagster(corpus, stage)
    serving = corpus.serving.read().get(stage)
    contract_id = corpus.contract(stage).id if serving is None else serving.contract_id
    if as_json:
        before = None if serving is None else serving.before
        told = {} if found is None else {"coverage": coverage_told(found.coverage)}
        print_json(
            {
                "stage": str(stage),
                "contract_id": contract_id,
                "before": before,
                "changed": found is not None,
                **told,
            }
        )
    elif found is None:
        console().print(f"Generation {contract_id} serves the {stage} vectors already")
    else:
        console().print(f"Generation {contract_id} serves the {stage} vectors now")
        console().print(f"`clipfarm migrate roll-back {stage}` leads back to {serving and serving.before}")


def roll_back(stage: StageName, as_json: Json = False) -> None:
    """Let the generation serve again that served before, or end a cut-over that is under way.

    No model is called. Videos that came or changed since are embedded by the next sync.
    """
    corpus = open_corpus()
    contract_id = migration.way_back(corpus, stage)
    found = readiness(corpus, stage, contract_id)
    missing = 0 if found is None else found.coverage.served - found.coverage.covered
    migration.cut_over(corpus, stage, contract_id, going_back=True)
    _tell_dagster(corpus, stage)
    serving = corpus.serving.read().get(stage)
    left = serving and serving.rolled_back
    if as_json:
        told = {"contract_id": contract_id, "rolled_back": left, "missing": missing}
        print_json({"stage": str(stage), **told})
        return
    console().print(f"Generation {contract_id} serves the {stage} vectors")
    if missing:
        console().print(f"It lacks {missing:,} videos that were served; the next sync embeds them")
    console().print(f"{left} is kept, and serves again only by `clipfarm migrate cut-over {stage} {left}`")


def drop(
    stage: StageName,
    generation: Annotated[str, typer.Argument(help="Its contract id, or how that begins.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the vectors and rows of a generation that does not serve, for good."""
    corpus = open_corpus()
    found = stage_generations(corpus, stage)
    known = {one.contract_id: one for one in (found.serving, found.candidate, *found.others) if one}
    known |= {i: Generation(i, None, 0) for i in found.record.dropped if i not in known}
    _, contract_id = choose_generation([(stage, i) for i in known], generation)
    was_before = found.record.before == contract_id
    if not yes:
        _ask(stage, known[contract_id], was_before=was_before, as_json=as_json)
    done = drop_generation(corpus, stage, contract_id)
    if as_json:
        told = {"rows": done.rows, "vectors": done.vectors, "bytes": done.bytes}
        print_json({"stage": str(stage), "contract_id": contract_id, "was_before": was_before, **told})
        return
    console().print(
        f"Generation {contract_id} of {stage} vectors is dropped: {done.vectors:,} vectors"
        f" ({size_told(done.bytes)}) and {done.rows:,} rows are removed"
    )
    if was_before:
        console().print("It served before: there is no way back to it any more")


def _ask(stage: Stage, generation: Generation, *, was_before: bool, as_json: bool) -> None:
    """Let a person confirm that a generation is dropped."""
    if as_json or not sys.stdin.isatty():
        raise SettingsError(
            "dropping a generation removes its vectors for good; give --yes if it shall be so"
        )
    model = f", made by {generation.contract.model_name}" if generation.contract else ""
    typer.echo(
        f"This removes {generation.objects:,} {stage} vectors ({size_told(generation.bytes)}) of generation"
        f" {generation.contract_id}{model}, for good."
    )
    if was_before:
        typer.echo("It served before: after this there is no way back to it but to embed all videos again.")
    if not typer.confirm("Remove them?"):
        raise MigrationError("nothing was removed")


def _tell_dagster(corpus: Corpus, stage: Stage) -> None:
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.reconcile import reconcile

    with dagster_instance(corpus.settings) as instance:
        reconcile(corpus, instance, DEFAULT_NAMES, stage)
