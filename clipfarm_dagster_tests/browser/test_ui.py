"""The platform in `dagster dev`, used in a real browser and checked against ledgers and store."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from scipy import ndimage

from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.browser.conftest import save_screenshot
from clipfarm_dagster_tests.browser.platform import CLIPS, LATE_CLIP, Clip, Platform
from clipfarm_dagster_tests.browser.ui import PATIENCE, RUN_PATIENCE, DagsterUI

pytestmark = pytest.mark.xdist_group("browser")

Shoot = Callable[[str], None]


def expected_status(stage: Stage, clip: Clip) -> Status:
    """What the ledger says of a clip in the end."""
    if stage == Stage.VIDEO and clip.broken:
        return Status.INVALID_RAW_OBJECT
    if stage == Stage.AUDIO and clip.sound is None:
        return Status.MISSING_RAW_OBJECT
    return Status.SUCCESS


def wait_for_statuses(platform: Platform, expected: Mapping[Stage, Mapping[str, Status]]) -> None:
    """Wait until the ledgers hold exactly these statuses."""
    deadline = time.monotonic() + RUN_PATIENCE / 1000
    while {stage: platform.statuses(stage) for stage in expected} != expected:
        if time.monotonic() > deadline:
            assert {stage: platform.statuses(stage) for stage in expected} == expected
        time.sleep(0.5)


def check_vector(platform: Platform, stage: Stage, video_id: str) -> None:
    """The store holds a sound vector of this video."""
    stored = platform.corpus.store.get(platform.corpus.keys.embedding(stage, video_id))
    from_npy(stored.data, dimension=768)


def see_picture(preview: Locator) -> None:
    """The preview shows a picture that the browser has decoded."""
    picture = preview.get_by_role("img").filter(visible=True).last
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 300


def test_graph_and_descriptions(ui: DagsterUI) -> None:
    ui.open_graph("raw", "embeddings")
    for stage in Stage:
        expect(ui.page.get_by_text(f"raw_{stage}", exact=True).first).to_be_visible()
        expect(ui.page.get_by_text(f"{stage}_embedding", exact=True).first).to_be_visible()
    ui.open("/assets/video_embedding")
    expect(ui.page.get_by_text("VideoMAE over 16 frames").first).to_be_visible()
    ui.open("/assets/raw_video")
    expect(ui.page.get_by_role("button", name="Observe")).to_be_visible()


def test_one_partition_with_its_contact_sheet(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    ui.materialize("video_embedding", "mirror-inspection")

    ui.open_partition("video_embedding", "mirror-inspection")
    for name in ("outcome", "key", "dimension", "seconds", "model", "contract", "source_hash"):
        expect(ui.page.get_by_role("cell", name=name, exact=True)).to_be_visible()
    shoot("partition")
    see_picture(ui.open_markdown("preview"))
    shoot("contact-sheet")
    assert platform.statuses(Stage.VIDEO)["mirror-inspection"] == Status.SUCCESS
    check_vector(platform, Stage.VIDEO, "mirror-inspection")


@pytest.mark.slow
def test_one_partition_with_its_waveform(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    ui.materialize("audio_embedding", "singing-bird")

    ui.open_partition("audio_embedding", "singing-bird")
    see_picture(ui.open_markdown("preview"))
    shoot("waveform")
    check_vector(platform, Stage.AUDIO, "singing-bird")


@pytest.mark.slow
def test_one_partition_with_its_text(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    ui.materialize("text_embedding", "singing-bird")

    ui.open_partition("text_embedding", "singing-bird")
    shoot("text")
    preview = ui.page.get_by_role("row").filter(has_text="preview")
    expect(preview).to_contain_text("A bird sings its heart out")
    expect(preview).to_contain_text("This one performs.")
    check_vector(platform, Stage.TEXT, "singing-bird")


@pytest.mark.slow
def test_backfill_of_three(ui: DagsterUI, platform: Platform) -> None:
    three = ["mirror-inspection", "singing-bird", "webcam-hello"]

    ui.backfill("audio_embedding", three)

    ui.see_backfill(targeted=3, succeeded=3, failed=0)
    assert ui.runs_of_backfill() == 1
    statuses = platform.statuses(Stage.AUDIO)
    assert {video_id: statuses[video_id] for video_id in three} == dict.fromkeys(three, Status.SUCCESS)
    for video_id in three:
        check_vector(platform, Stage.AUDIO, video_id)


@pytest.mark.slow  # for Dagster looks at backfills every thirty seconds
def test_backfill_with_a_broken_clip(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    ui.backfill("video_embedding", ["rooftop-crane", "evening-skyline", "truncated-upload"])

    ui.see_backfill(targeted=3, succeeded=2, failed=1)
    shoot("backfill")
    ui.open_partition("video_embedding", "truncated-upload")
    expect(ui.page.get_by_text("failed, and did not materialize this asset")).to_be_visible()
    ui.open_failed_run()
    expect(ui.page.get_by_text("1 of 3 video items failed; the others are done.").first).to_be_visible()
    expect(ui.page.get_by_text("cannot open the file (50386 bytes)").first).to_be_visible()
    ui.filter_log("type:STEP_FAILURE")
    expect(ui.page.get_by_role("cell", name="truncated-upload", exact=True)).to_be_visible()
    shoot("failed-run")
    statuses = platform.statuses(Stage.VIDEO)
    assert statuses["truncated-upload"] == Status.INVALID_RAW_OBJECT
    assert statuses["rooftop-crane"] == statuses["evening-skyline"] == Status.SUCCESS


def test_a_broken_clip_and_its_cause(ui: DagsterUI, platform: Platform) -> None:
    ui.launch("video_embedding", "truncated-upload")

    cause = ui.page.get_by_text("cannot open the file (50386 bytes)").first
    expect(cause).to_be_visible(timeout=RUN_PATIENCE)  # before the run has ended
    ui.see_status("Failure")
    ui.open_partition("video_embedding", "truncated-upload")
    expect(ui.page.get_by_text("failed, and did not materialize this asset")).to_be_visible()
    assert platform.statuses(Stage.VIDEO)["truncated-upload"] == Status.INVALID_RAW_OBJECT


def test_projection_and_failures_of_a_stage(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    if "truncated-upload" not in platform.statuses(Stage.VIDEO):
        platform.sync(Stage.VIDEO)

    ui.materialize_whole("video_manifest")

    failures = ui.page.get_by_role("row").filter(has_text="failures").first
    expect(failures).to_contain_text("truncated-upload")
    expect(failures).to_contain_text("cannot open the file (50386 bytes)")
    failures.scroll_into_view_if_needed()
    shoot("failures")
    see_picture(ui.open_markdown("overview"))


@pytest.mark.slow
def test_sensor_embeds_everything(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    ui.turn_sensor_on("embedding_sensor")

    expected = {stage: {clip.video_id: expected_status(stage, clip) for clip in CLIPS} for stage in Stage}
    wait_for_statuses(platform, expected)
    for stage in Stage:
        for video_id, status in expected[stage].items():
            if status == Status.SUCCESS:
                check_vector(platform, stage, video_id)
    ui.see_counts("text_embedding", materialized=7, failed=0)
    ui.see_counts("audio_embedding", materialized=6, failed=0)
    ui.see_counts("video_embedding", materialized=5, failed=2)
    ui.open_graph("raw", "embeddings", "manifests")
    expect(ui.page.get_by_text("Loading")).to_have_count(0)
    shoot("asset-graph")


@pytest.mark.slow
def test_sensor_follows_what_changes(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    ui.turn_sensor_on("embedding_sensor")
    expected = {stage: {clip.video_id: expected_status(stage, clip) for clip in CLIPS} for stage in Stage}
    wait_for_statuses(platform, expected)

    platform.deliver(LATE_CLIP)
    wait_for_statuses(
        platform, {stage: {**expected[stage], LATE_CLIP.video_id: Status.SUCCESS} for stage in Stage}
    )
    for stage in Stage:
        check_vector(platform, stage, LATE_CLIP.video_id)
    ui.see_counts("text_embedding", materialized=8, failed=0)
    ui.open_partition("text_embedding", LATE_CLIP.video_id)
    expect(ui.page.get_by_text("Materialized", exact=True)).to_be_visible()

    before = {stage: platform.versions(stage) for stage in Stage}
    platform.retitle(LATE_CLIP, "Portrait, now with a better title")
    deadline = time.monotonic() + RUN_PATIENCE / 1000
    while platform.versions(Stage.TEXT) == before[Stage.TEXT] and time.monotonic() < deadline:
        time.sleep(0.5)
    after = {stage: platform.versions(stage) for stage in Stage}
    changed = {stage: {v for v in after[stage] if after[stage][v] != before[stage][v]} for stage in Stage}
    assert changed == {Stage.VIDEO: set(), Stage.AUDIO: set(), Stage.TEXT: {LATE_CLIP.video_id}}
    ui.turn_sensor_on("embedding_sensor")
    shoot("sensor")


def fuse(ui: DagsterUI, platform: Platform) -> int:
    """Embed what is not embedded yet, and make the manifests and the fused one; returns its rows."""
    platform.sync()
    ui.run_job("manifests_job", "concat")
    statuses = [platform.statuses(stage) for stage in Stage]
    return sum(all(found[clip] == Status.SUCCESS for found in statuses) for clip in statuses[0])


@pytest.mark.slow
def test_projection_of_the_fused_vectors(ui: DagsterUI, platform: Platform, shoot: Shoot) -> None:
    rows = fuse(ui, platform)

    ui.open_partition("fused_manifest", "concat")
    expect(ui.page.get_by_role("row").filter(has_text="dagster/row_count")).to_contain_text(str(rows))
    overview = ui.open_markdown("overview")
    expect(overview.get_by_alt_text(f"concat: {rows} vectors on a plane")).to_be_visible()
    see_picture(overview)
    shoot("projection")


@pytest.mark.slow
def test_atlas_shows_points_titles_and_frames(ui: DagsterUI, platform: Platform, webgl_page: Page) -> None:
    pytest.importorskip("embedding_atlas", reason="the viewer is not installed (make browser installs it)")
    rows = fuse(ui, platform)
    hosts: set[str | None] = set()
    webgl_page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))

    with platform.serving_atlas() as url:
        webgl_page.goto(url)
        expect(webgl_page.get_by_text(f"{rows} points", exact=True)).to_be_visible(timeout=PATIENCE)
        expect(webgl_page.get_by_text("Inspecting a space telescope's mirror").first).to_be_visible()
        frames = webgl_page.locator("img[src^='data:image/jpeg']")
        expect(frames).to_have_count(rows)
        places = points(webgl_page.locator("canvas"))
        assert rows / 2 < len(places) <= rows  # some may touch
        webgl_page.mouse.move(*places[0])
        expect(frames).to_have_count(rows + 1)
        save_screenshot(webgl_page, "atlas")
    assert hosts - {None} == {"127.0.0.1"}, "the viewer needs nothing from elsewhere"


def points(canvas: Locator) -> list[tuple[float, float]]:
    """Middles of the coloured spots of a canvas, as places on the page."""
    box = canvas.bounding_box()
    assert box is not None
    with Image.open(io.BytesIO(canvas.screenshot())) as picture:
        red, _, blue = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=np.int16), 2, 0)
    spots, count = ndimage.label(blue - red > 50)
    sizes = ndimage.sum_labels(np.ones_like(spots), spots, range(1, count + 1))
    middles = ndimage.center_of_mass(spots > 0, spots, range(1, count + 1))
    return [(box["x"] + x, box["y"] + y) for (y, x), size in zip(middles, sizes, strict=True) if size > 20]
