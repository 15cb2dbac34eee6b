"""`clipfarm search` and `clipfarm duplicates`: videos that are near to words or to each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from clipfarm_dagster.cli.output import (
    AllowPartial,
    Generation,
    Json,
    console,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.corpus.named_generations import find_generation
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.explore.search import (
    DUPLICATE_COSINE,
    near_duplicates,
    nearest,
    vector_of,
    words_vector,
)
from clipfarm_dagster.manifests.refresh import fused_file
from clipfarm_dagster.manifests.vector_table import vector_keys
from clipfarm_dagster.manifests.vectors import fused_vectors, modality_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.local_copies import LocalFile

Exact = Annotated[
    bool, typer.Option("--exact", help="Compare with every vector, without an approximate index.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "clipfarm search 'waves on a beach' -k 5", "clipfarm search --like VIDEO_ID --modality video"
        )
    )(search)
    app.command(epilog=examples("clipfarm duplicates", "clipfarm duplicates --threshold 0.99 --limit 20"))(
        duplicates
    )


def search(
    words: Annotated[str, typer.Argument(help="What the videos should be about.")] = "",
    like: Annotated[str, typer.Option(help="A video_id, instead of words.")] = "",
    modality: Annotated[
        Stage | None, typer.Option(help="With --like: compare vectors of this modality.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="With --like: compare vectors fused by this strategy.")] = "",
    generation: Generation = "",
    allow_partial: AllowPartial = False,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Number of videos to list.")] = 10,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Find videos by words, over the text vectors, or by similarity to another video."""
    if bool(words) == bool(like):
        raise SettingsError("give either words or --like VIDEO_ID")
    if words and (modality is not None or strategy):
        raise SettingsError("words are compared with text vectors; use --modality and --strategy with --like")
    if modality is not None and strategy:
        raise SettingsError("give --modality or --strategy, not both")
    corpus = open_corpus()
    named = _named(corpus, Stage.TEXT if words else modality, strategy, generation)
    file = _file(corpus, modality or Stage.TEXT, strategy, named, allow_partial)
    if words:
        query = words_vector(corpus.encoder(Stage.TEXT, named and named[1]), words)
    else:
        query = vector_of(file, like)
    found = nearest(file, query, top, without=like or None, exact=exact)
    titles = _titles(corpus, [match.video_id for match in found])
    keys = vector_keys(file, [match.video_id for match in found])
    results: list[dict[str, Any]] = [
        {
            "video_id": match.video_id,
            "title": titles[match.video_id],
            "score": round(match.score, 6),
            "keys": keys[match.video_id],
        }
        for match in found
    ]
    if as_json:
        print_json({"results": results})
        return
    if not results:
        console().print("Nothing to compare with: no other video has a vector here; `clipfarm plan` says why")
        return
    shown = [[f"{e['score']:.3f}", e["video_id"], e["title"]] for e in results]
    asked = f"Nearest to {words!r}" if words else f"Most similar to {like}"
    console().print(table(asked, ["cosine", "video_id", "title"], shown))


def duplicates(
    modality: Annotated[
        Stage | None, typer.Option(help="Modality of the vectors: by default video, or that of --generation.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="Compare vectors fused by this strategy instead.")] = "",
    generation: Generation = "",
    allow_partial: AllowPartial = False,
    threshold: Annotated[
        float, typer.Option(min=-1, max=1, help="Minimum cosine of a pair.")
    ] = DUPLICATE_COSINE,
    limit: Annotated[int, typer.Option(min=1, help="List at most this many pairs, the nearest.")] = 1000,
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """List pairs of nearly identical videos."""
    corpus = open_corpus()
    named = _named(corpus, modality, strategy, generation)
    file = _file(corpus, modality or Stage.VIDEO, strategy, named, allow_partial)
    pairs, count = near_duplicates(file, threshold, limit=limit, exact=exact)
    titles = _titles(corpus, list({name for pair in pairs for name in (pair.first, pair.second)}))
    found: list[dict[str, Any]] = [
        {
            "video_ids": [pair.first, pair.second],
            "titles": [titles[pair.first], titles[pair.second]],
            "score": round(pair.score, 6),
        }
        for pair in pairs
    ]
    if as_json:
        print_json({"count": count, "pairs": found})
        return
    rows = [
        [f"{entry['score']:.4f}", *entry["video_ids"], " | ".join(dict.fromkeys(entry["titles"]))]
        for entry in found
    ]
    title = f"{count:,} pairs of cosine {threshold:g} or more"
    console().print(table(title, ["cosine", "video_id", "video_id", "titles"], rows))


def _named(
    corpus: Corpus, modality: Stage | None, strategy: str, generation: str
) -> tuple[Stage, str] | None:
    """Stage and contract id of the generation that was named, if one was."""
    if not generation:
        return None
    return find_generation(corpus, list(Stage) if modality is None or strategy else [modality], generation)


def _file(
    corpus: Corpus, modality: Stage, strategy: str, named: tuple[Stage, str] | None, allow_partial: bool
) -> LocalFile:
    """The vectors to look at; says on standard error how many of them are missing."""
    if strategy and named is None:
        return fused_file(corpus, strategy)
    if strategy:
        assert named is not None
        file, fusion = fused_vectors(corpus, strategy, *named, allow_partial=allow_partial)
    else:
        stage, generation = named or (modality, None)
        vectors = modality_vectors(corpus, stage, generation=generation, allow_partial=allow_partial)
        file, fusion = vectors.file, vectors.fusion
    _warn(len(fusion.dropped))
    return file


def _titles(corpus: Corpus, video_ids: list[str]) -> dict[str, str]:
    rows = corpus.rows(video_ids)
    return {video_id: rows.get(video_id, {}).get("title", "") for video_id in video_ids}


def _warn(dropped: int) -> None:
    if dropped:
        typer.echo(
            f"clipfarm: {dropped} vectors are missing or wrong; `clipfarm verify` names them", err=True
        )
