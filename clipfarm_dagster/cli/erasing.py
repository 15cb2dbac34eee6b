"""`clipfarm erase`: removes videos from everything that was made of them, keeps them away, and proves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clipfarm_dagster.cli.output import (
    Json,
    confirmed,
    console,
    dagster_instance,
    error_console,
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.maintenance.certificate import Certificate, Holdings, Left
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.store.keys import check_video_id
from clipfarm_dagster.store.whole_files import written_whole

_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "clipfarm erase VIDEO_ID --dry-run",
            "clipfarm erase VIDEO_ID --raw --certificate certificate.json",
            "clipfarm erase VIDEO_ID --check",
        )
    )(erase)


def erase(
    video_ids: Annotated[list[str], typer.Argument(metavar="VIDEO_ID...")],
    raw: Annotated[bool, typer.Option("--raw", help="Remove the raw objects too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what there is.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only look for them everywhere, byte for byte.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(help="File to write, as JSON: what was removed, and what is left.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase videos for good: vectors, rows, events and caches; keep them away; and look for what is left.

    Of each there remains a tombstone, from which nobody can tell the video; its rows in the CSV are passed
    over from then on. Exit code 1 means that something is left, or was found by --check.
    """
    from clipfarm_dagster.orchestration.erasure import erase_videos
    from clipfarm_dagster.orchestration.erasure_looking import find_holdings, look_for
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES

    ids = list(dict.fromkeys(check_video_id(video_id) for video_id in video_ids))
    if [dry_run, check, certificate is not None].count(True) > 1:
        raise ClipFarmError("give only one of --dry-run, --check and --certificate")
    settings = load_settings()
    corpus = open_corpus(settings)
    with dagster_instance(settings) as instance:
        if check:
            left = look_for(corpus, instance, DEFAULT_NAMES, ids, raw=raw)
            _tell_check(corpus, ids, left, as_json)
            raise typer.Exit(0 if left.nothing else 1)
        if dry_run or not yes:
            there = find_holdings(corpus, instance, DEFAULT_NAMES, ids, raw=raw)
            if dry_run:
                _tell_holdings(there, as_json)
                return
            stay = "" if raw else "; raw objects stay"
            confirmed(f"Erase {_videos(ids)} for good? There is {_in_words(there)}{stay}")
        done = erase_videos(corpus, instance, DEFAULT_NAMES, ids, raw=raw, say=_say(as_json))
    if certificate is not None:
        with written_whole(certificate) as part:
            part.write_text(json.dumps(done.to_dict(), indent=2, ensure_ascii=False) + "\n")
    if as_json:
        print_json(done.to_dict())
    else:
        _tell_certificate(done)
    raise typer.Exit(0 if done.complete else 1)


def _say(quiet: bool) -> Callable[[str], None]:
    """Progress on standard error."""
    if quiet:
        return lambda line: None
    return lambda line: error_console().print(f"clipfarm: {line}", soft_wrap=True)


def _tell_holdings(there: Holdings, as_json: bool) -> None:
    if as_json:
        print_json({"there": there.to_dict()})
    else:
        console().print(f"There is {_in_words(there)}; nothing was changed", soft_wrap=True)


def _tell_check(corpus: Corpus, ids: list[str], left: Left, as_json: bool) -> None:
    erased = corpus.tombstones.read()
    tombstones = {video_id: erased.tombstone(video_id) if video_id in erased else None for video_id in ids}
    if as_json:
        # a list, in the order of the ids: what is kept of this should not name them
        print_json({"tombstones": list(tombstones.values()), "nothing_left": left.nothing, **left.to_dict()})
        return
    rows = [[video_id, tombstone or "not erased"] for video_id, tombstone in tombstones.items()]
    console().print(table("Tombstones", ["video_id", "tombstone"], rows[:_SHOWN]))
    _tell_left(left)


def _tell_certificate(done: Certificate) -> None:
    out = console()
    out.print(f"{_videos(done.tombstones)} erased: {_in_words(done.removed)}", soft_wrap=True)
    if done.left.holdings.found.raw_objects_kept:
        kept = _counted(done.left.holdings.found.raw_objects_kept, "raw object")
        out.print(f"Not removed, without --raw: {kept}")
    _tell_left(done.left)


def _tell_left(left: Left) -> None:
    out = console()
    if left.nothing:
        out.print("Nothing is left within reach")
    if left.holdings:
        out.print(f"Left: {_in_words(left.holdings)}", soft_wrap=True)
    if left.traces:
        shown = [[trace.place, f"{trace.count:,}"] for trace in left.traces[:_SHOWN]]
        out.print(table(f"Left in {len(left.traces):,} places", ["place", "times"], shown))
    for line in left.refused:
        out.print(f"Could not be removed, or looked at: {line}", soft_wrap=True)
    if left.words:
        out.print(f"Ids that are words, and were looked for only where ids are kept: {left.words:,}")
    out.print("Out of reach:")
    for line in left.out_of_reach:
        out.print(f"- {line}", soft_wrap=True)


def _in_words(there: Holdings) -> str:
    """What there is, in words and numbers."""
    found = there.found
    counts = {
        "vector": found.vectors,
        "raw object": found.raw_objects,
        "manifest row": found.manifest_rows,
        "ledger row": found.ledger_rows,
        "previous version": found.previous_versions,
        "unfinished file": found.unfinished_files,
        "partition": there.dagster.get("partitions", 0),
        "Dagster record": _records_of_dagster(there.dagster),
    }
    return ", ".join(_counted(count, name) for name, count in counts.items() if count) or "nothing"


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _records_of_dagster(counts: Mapping[str, Any]) -> int:
    """Rows and files that are removed, or in which ids are replaced."""
    rows: list[int] = [*counts.get("deleted", {}).values(), *counts.get("replaced", {}).values()]
    return sum(rows) + int(counts.get("files_changed", 0)) + int(counts.get("files_removed", 0))


def _videos(of: Sequence[str]) -> str:
    return _counted(len(of), "video")
