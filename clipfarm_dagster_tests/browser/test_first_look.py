"""From `clipfarm demo` to the first picture, and what the UI says of a failure, in a real browser."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from clipfarm_dagster_tests.browser.test_ui import see_picture
from clipfarm_dagster_tests.browser.ui import RUN_PATIENCE, DagsterUI
from clipfarm_dagster_tests.support.servers import clean_environment, clipfarm, serving

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def served(browser: Browser) -> Iterator[str]:
    """`clipfarm dev` over a demo, of which one transcript is broken afterwards; its address."""
    with tempfile.TemporaryDirectory(prefix="clipfarm-") as folder:
        home = Path(folder) / "demo"
        environment = clean_environment(home)
        subprocess.run(
            [*clipfarm("demo"), "--home", str(home), "--json"],
            env=environment,
            check=True,
            capture_output=True,
        )
        (home / "store/clipfarm/raw/text/city-rain.json").write_text("no JSON")
        done = subprocess.run([*clipfarm("sync"), "--json"], env=environment, capture_output=True)
        assert done.returncode == 1
        with serving("dev", "/server_info", home) as server:
            yield server.url


def test_three_clicks_lead_to_a_contact_sheet(page: Page, served: str) -> None:
    ui = DagsterUI(page, served)
    ui.open("/assets/video_embedding")

    page.get_by_role("tab", name="Partitions").or_(page.get_by_role("link", name="Partitions")).first.click()
    page.get_by_text("city-dusk", exact=True).first.click()
    see_picture(ui.open_markdown("preview"))


def test_a_failed_partition_says_why_on_its_own_page(
    page: Page, served: str, shoot: Callable[[str], None]
) -> None:
    ui = DagsterUI(page, served)
    ui.open_partition("text_embedding", "city-rain")

    for row, words in {
        "status": "invalid_raw_object",
        "cause": "the transcript is not JSON",
        "attempts": "1",
        "next": "not tried again until its raw object",
    }.items():
        expect(page.get_by_role("row").filter(has_text=row).filter(has_text=words).first).to_be_visible()
    shoot("failed-partition")


def test_all_checks_run_at_one_click(page: Page, served: str) -> None:
    ui = DagsterUI(page, served)
    ui.open("/assets/video_embedding?view=checks")

    page.get_by_role("button", name="Execute all").click()

    expect(page.get_by_text("Not Evaluated")).to_have_count(0, timeout=RUN_PATIENCE)
    expect(page.get_by_text("Skipped")).to_have_count(0)
    expect(page.get_by_text("Passed").first).to_be_visible(timeout=RUN_PATIENCE)


def test_a_run_of_a_command_is_on_its_jobs_page_and_can_be_executed_again(page: Page, served: str) -> None:
    ui = DagsterUI(page, served)
    ui.open("/locations/clipfarm/jobs/video_embedding_job/runs")
    page.get_by_role("link", name="View", exact=True).first.click()

    former = page.url
    page.get_by_role("button", name="Re-execute all").click()

    page.wait_for_url(lambda url: "/runs/" in url and url != former)
    ui.see_status("Success")
    expect(page.get_by_text("CheckError")).to_have_count(0)
