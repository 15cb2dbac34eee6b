"""`clipfarm export` and `clipfarm import`: vectors of one modality to a file and from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clipfarm_dagster.cli.output import (
    AllowPartial,
    Generation,
    Json,
    console,
    dagster_instance,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.corpus.named_generations import find_generation
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.transfer.exports import export_vectors
from clipfarm_dagster.transfer.imports import Imported, import_vectors
from clipfarm_dagster.transfer.vector_file import VectorFile
from clipfarm_dagster.vectors.contract import Contract

_SHOWN = 50

Modality = Annotated[Stage, typer.Option("--modality", help="Modality of the vectors.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("export", epilog=examples("clipfarm export --modality text --out text.parquet"))(export)
    app.command(
        "import",
        epilog=examples(
            "clipfarm import text.parquet --modality text",
            "clipfarm import text.npz --modality text --configured",
        ),
    )(import_)


def export(
    modality: Modality,
    out: Annotated[Path, typer.Option(help="File to write: .parquet or .npz.")],
    generation: Generation = "",
    allow_partial: AllowPartial = False,
    as_json: Json = False,
) -> None:
    """Write a modality's vectors, with their video_ids and their contract, to one file."""
    corpus = open_corpus()
    named = find_generation(corpus, [modality], generation)[1] if generation else None
    done = export_vectors(corpus, modality, out, generation=named, allow_partial=allow_partial)
    bad = [{"video_id": lost.video_id, "key": lost.key, "problem": lost.problem} for lost in done.dropped]
    if as_json:
        print_json(
            {
                "out": str(out),
                "vectors": done.vectors,
                "dimension": done.dimension,
                "contract": done.contract.id,
                "bad": bad,
            }
        )
    else:
        console().print(f"{done.vectors:,} {modality} vectors of {done.dimension} numbers in {out}")
        if bad:
            rows = [[entry["video_id"], entry["problem"]] for entry in bad[:_SHOWN]]
            console().print(table(f"{len(bad):,} missing or wrong", ["video_id", "problem"], rows))
    raise typer.Exit(1 if bad else 0)


def import_(
    file: Annotated[Path, typer.Argument(help="Parquet or .npz with `video_id` and `embedding`.")],
    modality: Modality,
    model: Annotated[str, typer.Option(help="Model that made the vectors, by its id on the hub.")] = "",
    revision: Annotated[str, typer.Option(help="Full commit SHA of that model.")] = "",
    preprocess: Annotated[str, typer.Option(help="Preprocessing that was used, as NAME@VERSION.")] = "",
    preprocess_params: Annotated[str, typer.Option(help="Its parameters, as a JSON object.")] = "{}",
    pooling: Annotated[str, typer.Option(help="Pooling that was used.")] = "",
    dtype: Annotated[str, typer.Option(help="Precision of the model.")] = "float32",
    configured: Annotated[
        bool,
        typer.Option(
            "--configured", help="The vectors were made exactly as the settings say, from the present inputs."
        ),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace existing vectors too, instead of keeping them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Store vectors that were made elsewhere, and record how they were made.

    Use --model and its companions, or --configured, to say how; files from `clipfarm export` contain it.
    Vectors of a contract that does not serve are kept beside those that do; `clipfarm migrate` compares them
    and lets them serve. Videos that have a vector of the contract keep it, unless --replace is given.
    """
    settings = load_settings()
    corpus = open_corpus(settings)
    vectors = VectorFile(file)
    if configured:
        contract = corpus.contract(modality)
    elif model:
        contract = _named_contract(modality, model, revision, preprocess, preprocess_params, pooling, dtype)
    elif vectors.contract is not None:
        contract = vectors.contract
    else:
        raise SettingsError(
            f"{file} does not say how its vectors were made; give --model, --revision, --preprocess and"
            " --pooling, or --configured"
        )
    if contract.stage != modality:
        raise SettingsError(f"{file} holds {contract.stage} vectors, not {modality}")
    done = import_vectors(corpus, modality, vectors, contract, replace_done=replace)
    if (done.serves or done.wanted) and done.rows:
        _tell_dagster(corpus, modality, done)
    if as_json:
        print_json(
            {
                "imported": len(done.rows),
                "kept": done.kept,
                "refused": [{"video_id": name, "problem": why} for name, why in done.refused.items()],
                "contract": contract.id,
                "configured": done.wanted,
                "serves": done.serves,
            }
        )
    else:
        _show(done)
    raise typer.Exit(1 if done.refused else 0)


def _named_contract(
    stage: Stage, model: str, revision: str, preprocess: str, params: str, pooling: str, dtype: str
) -> Contract:
    name, _, version = preprocess.partition("@")
    if not (revision and name and version and pooling):
        raise SettingsError("with --model, also give --revision, --preprocess NAME@VERSION and --pooling")
    try:
        parameters = json.loads(params)
    except ValueError:
        parameters = None
    if not isinstance(parameters, dict):
        raise SettingsError("--preprocess-params is not a JSON object")
    return Contract(
        stage=stage,
        model_name=model,
        model_revision=revision,
        preprocess_name=name,
        preprocess_version=version,
        preprocess_params=parameters,
        pooling=pooling,
        dtype=dtype,
    )


def _tell_dagster(corpus: Corpus, stage: Stage, done: Imported) -> None:
    from clipfarm_dagster.orchestration.erasure_finishing import erasures_followed
    from clipfarm_dagster.orchestration.launching import announce
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES

    with (
        dagster_instance(corpus.settings) as instance,
        erasures_followed(corpus, instance, DEFAULT_NAMES) as erased,
        corpus.stage(stage, done.contract.id) as opened,
    ):
        rows = [row for row in done.rows if row.video_id not in erased]
        instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, [row.video_id for row in rows])
        announce(instance, DEFAULT_NAMES, opened, rows)


def _show(done: Imported) -> None:
    out = console()
    out.print(f"{len(done.rows):,} vectors imported")
    if done.kept:
        out.print(f"{done.kept:,} videos keep their vector; --replace replaces it")
    if done.rows and not done.serves:
        out.print(
            f"Vectors of another contract serve; these are kept beside them as generation {done.contract.id}."
            " `clipfarm migrate status` shows both.",
            soft_wrap=True,
        )
    if done.refused:
        rows: list[list[Any]] = [[name, why] for name, why in list(done.refused.items())[:_SHOWN]]
        out.print(table(f"{len(done.refused):,} refused", ["video_id", "problem"], rows))
