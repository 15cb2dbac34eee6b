"""`clipfarm demo`: the whole platform on a small corpus of its own, without network, account or server."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import dagster as dg
import typer

from clipfarm_dagster.cli.manifests import make_manifests
from clipfarm_dagster.cli.output import (
    Json,
    console,
    dagster_instance,
    examples,
    print_json,
    table,
)
from clipfarm_dagster.cli.progress import Listener, progress_bars
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.explore.search import nearest, vector_of
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.manifests.vectors import modality_vectors
from clipfarm_dagster.modalities.registry import quiet_transformers
from clipfarm_dagster.orchestration.in_process import run_in_process
from clipfarm_dagster.settings import SETTINGS_FILE, load_settings
from clipfarm_dagster.stages import Stage

DEMO_HOME = Path(".clipfarm-demo")
MARKER = "made-by-clipfarm-demo"
"""File that says that a folder is a demo's, and nobody's own."""
MAX_TICKS = 20


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("clipfarm demo", "clipfarm demo --home /tmp/clipfarm-demo"))(demo)


def demo(
    home: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = DEMO_HOME,
    as_json: Json = False,
) -> None:
    """Make a dozen clips and small models, then let the real sensor and assets embed them."""
    out = console()

    def say(text: str) -> None:
        if not as_json:
            out.print(text, soft_wrap=True)

    home = home.absolute()
    _use_no_other_home(home)
    if not (home / SETTINGS_FILE).exists():
        say(f"Making a corpus of short clips, and models, in {home}")
        make_demo(home)
        say("The video and audio models have RANDOM weights: their vectors mean nothing.")
        say("The text model is the real all-MiniLM-L6-v2.")
    settings = load_settings()
    corpus = Corpus.open(settings)
    with dagster_instance(settings) as instance:
        embedded = run_sensor_until_quiet(instance, quiet=as_json)
        if any(embedded.values()):
            make_manifests(corpus, instance)
    answer = _describe(corpus, embedded)
    if as_json:
        print_json(answer)
        return
    if not any(embedded.values()):
        say("Nothing to do: every vector is up to date.")
    rows = [[s, f"{entry['vectors']:,}", f"{entry['embedded']:,}"] for s, entry in answer["stages"].items()]
    out.print(table("Demo", ["stage", "vectors in the store", "embedded just now"], rows))
    say(f"\nVectors: {corpus.store.url}/{corpus.keys.prefix}/embeddings/<stage>/<video_id>.npy")
    say(f"Manifests: {corpus.store.url}/{corpus.keys.prefix}/manifests, fused: …/fused")
    say(f"Ledgers: {settings.home_files.state}\n")
    neighbours = [[name, f"{score:.3f}", title] for name, score, title in answer["neighbours"]]
    out.print(table(f"Nearest by text to {answer['like']!r}", ["video_id", "cosine", "title"], neighbours))
    say("\nNext: `make dev` shows all of it in Dagster's UI; each partition shows its picture.")
    say(f"Or change {answer['newest']['title']!r}, the title in the last row of")
    say(f"{corpus.metadata.url}")
    say("and run the demo again: one text vector is recomputed.")


def _use_no_other_home(home: Path) -> None:
    """Have all settings of this process, and those that resources load in runs, come from `home` alone.

    Settings and Dagster instance of the environment are forgotten, and so is the default home: they may lead
    to somebody's own corpus.

    Raises:
        SettingsError: `home` holds something, and it is no demo.
    """
    if home.is_dir() and any(home.iterdir()) and not (home / MARKER).exists():
        raise SettingsError(f"{home} is in use and is not a demo's folder; name another with --home")
    for name in [name for name in os.environ if name.startswith("CLIPFARM_") or name == "DAGSTER_HOME"]:
        del os.environ[name]
    os.environ["CLIPFARM_HOME"] = str(home)


def make_demo(home: Path) -> None:
    """Write the demo's corpus, checkpoints and settings file into `home`."""
    from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint, make_video_checkpoint, minilm_folder
    from clipfarm_dagster.demo.corpus import demo_videos, metadata_csv

    home.mkdir(parents=True, exist_ok=True)
    (home / MARKER).touch()
    video_model, audio_model = home / "models" / "random-videomae", home / "models" / "random-wav2vec2"
    text_model = minilm_folder()
    with quiet_transformers():
        make_video_checkpoint(video_model)
        make_audio_checkpoint(audio_model)
    corpus = Corpus.open(load_settings(home=home))
    videos = list(demo_videos())
    for video in videos:
        corpus.store.put(corpus.keys.raw(Stage.VIDEO, video.video_id), video.mp4)
        corpus.store.put(corpus.keys.raw(Stage.AUDIO, video.video_id), video.wav)
        corpus.store.put(corpus.keys.raw(Stage.TEXT, video.video_id), video.transcript_json)
    corpus.store.put(corpus.keys.metadata(), metadata_csv(videos))
    lines = {
        "CLIPFARM_VIDEO_MODEL": video_model,
        "CLIPFARM_AUDIO_MODEL": audio_model,
        "CLIPFARM_TEXT_MODEL": text_model,
        "CLIPFARM_PREVIEWS": "all",
    }
    # written last: its presence says that the demo is whole
    (home / SETTINGS_FILE).write_text("".join(f'{name}="{value}"\n' for name, value in lines.items()))


def run_sensor_until_quiet(instance: dg.DagsterInstance, *, quiet: bool = False) -> dict[Stage, int]:
    """Evaluate the real sensor, and run what it requests in this process, until it requests nothing more.

    Returns the number of items that went through each stage's model.

    Raises:
        ClipFarmError: the sensor or a run could not do its work.
    """
    from clipfarm_dagster.definitions import build_definitions
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES, ITEMS_TAG, STAGE_TAG

    cursor: str | None = None
    with progress_bars(quiet) as bars:
        listener = Listener(bars)
        definitions = build_definitions(resource_overrides={"progress": listener})
        sensor = definitions.resolve_sensor_def(DEFAULT_NAMES.embedding_sensor)
        for _ in range(MAX_TICKS):
            with dg.build_sensor_context(
                instance=instance, cursor=cursor, resources=definitions.resources
            ) as context:
                context.log.setLevel(logging.WARNING)
                tick = sensor(context)
                cursor = tick.cursor if isinstance(tick, dg.SensorResult) else context.cursor
            if not isinstance(tick, dg.SensorResult) or not tick.run_requests:
                break
            for request in tick.run_requests:
                listener.start(Stage(request.tags[STAGE_TAG]), int(request.tags[ITEMS_TAG]))
                job = definitions.resolve_job_def(request.job_name or "")
                run_in_process(job, instance, request.run_config, request.tags)
    return {stage: counts["model_calls"] for stage, counts in listener.finished.items()}


def _describe(corpus: Corpus, embedded: dict[Stage, int]) -> dict[str, Any]:
    stages = {}
    for stage in Stage:
        with corpus.ledger(stage) as ledger:
            vectors = ledger.counts().get(Status.SUCCESS, 0)
        stages[str(stage)] = {"vectors": vectors, "embedded": embedded.get(stage, 0)}
    path = modality_vectors(corpus, Stage.TEXT).file
    rows = corpus.rows(corpus.latest_rows().video_ids())
    titles = {video_id: row["title"] for video_id, row in rows.items()}
    newest = max(rows, key=lambda video_id: rows[video_id]["captured_at"])
    like = min(titles)
    found = nearest(path, vector_of(path, like), 4, without=like)
    return {
        "home": str(corpus.settings.home),
        "store": corpus.store.url,
        "stages": stages,
        "newest": {"video_id": newest, "title": titles[newest]},
        "like": like,
        "neighbours": [(match.video_id, match.score, titles.get(match.video_id, "")) for match in found],
    }
