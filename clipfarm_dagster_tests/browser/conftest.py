"""One running platform and one browser for all browser tests.

With the environment variable `SCREENSHOTS` the tests leave their screenshots in that folder:

    SCREENSHOTS=docs/screenshots python -m pytest clipfarm_dagster_tests/browser
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from clipfarm_dagster_tests.browser.platform import Platform
from clipfarm_dagster_tests.browser.ui import DagsterUI

CHROMIUM_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def platform(
    browser: Browser, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """`clipfarm dev` over the small corpus; nothing is embedded yet."""
    platform = Platform(tmp_path_factory.mktemp("platform"), shared_folder / "media")
    with platform.serving():
        platform.add_partitions()
        yield platform


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page, as wide as the screenshots of the documentation."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    yield page
    page.close()


@pytest.fixture
def ui(page: Page, platform: Platform) -> DagsterUI:
    """Dagster's UI over the platform."""
    return DagsterUI(page, platform.url)


@pytest.fixture
def shoot(page: Page) -> Callable[[str], None]:
    """Take a screenshot for the documentation, where one is wanted."""
    folder = os.environ.get("SCREENSHOTS")

    def shoot(name: str) -> None:
        if folder is not None:
            page.wait_for_timeout(1000)  # for pictures' sake: what fades in has done so
            page.screenshot(path=Path(folder) / f"{name}.png")

    return shoot
