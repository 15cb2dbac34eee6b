"""`clipfarm atlas`: the fused vectors as a map in the browser, by embedding-atlas."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from clipfarm_dagster.cli.output import (
    AllowPartial,
    Generation,
    console,
    examples,
    open_corpus,
    table,
)
from clipfarm_dagster.corpus.named_generations import find_generation
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.manifests.refresh import fused_file
from clipfarm_dagster.manifests.vectors import fused_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.local_copies import LocalFile

SHOWN_PROBLEMS = 20
"""Videos without a thumbnail that are named."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm atlas", "clipfarm atlas --strategy mean --port 5056"))(atlas)


def atlas(
    strategy: Annotated[str, typer.Option(help="Fusion strategy whose vectors to show.")] = "concat",
    generation: Generation = "",
    allow_partial: AllowPartial = False,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5055,
    thumbnails: Annotated[
        int, typer.Option(min=0, help="Show a thumbnail for this many videos; each is read once.")
    ] = 2000,
) -> None:
    """Serve a map of the fused vectors on 127.0.0.1, with title, text and thumbnail, until interrupted."""
    if importlib.util.find_spec("embedding_atlas") is None:
        raise SettingsError(
            "the viewer is not installed; run `pip install '.[atlas]'` in ClipFarm's repository"
        )
    from clipfarm_dagster.explore.atlas import atlas_table
    from clipfarm_dagster.web.atlas import serve_atlas
    from clipfarm_dagster.web.serving import check_port_is_free

    check_port_is_free(port)
    corpus = open_corpus()
    file: LocalFile
    if generation:
        named = find_generation(corpus, list(Stage), generation)
        file, _ = fused_vectors(corpus, strategy, *named, allow_partial=allow_partial)
    else:
        file = fused_file(corpus, strategy)
    console().print(f"Placing the vectors of {strategy!r}, and making thumbnails …")
    problems: dict[str, str] = {}
    rows = atlas_table(corpus, file, thumbnails=thumbnails, on_problem=problems.__setitem__)
    if not rows.num_rows:
        raise SettingsError(f"there are no vectors fused by {strategy!r}; run `clipfarm status`")
    if problems:
        shown = [[video_id, cause] for video_id, cause in list(problems.items())[:SHOWN_PROBLEMS]]
        console().print(table(f"{len(problems):,} videos have no thumbnail", ["video_id", "cause"], shown))
    console().print(f"{rows.num_rows:,} videos: http://127.0.0.1:{port}")
    serve_atlas(rows, f"{corpus.settings.home} {strategy}", port, corpus.settings.hosts())
