"""One running platform and one browser for all browser tests.

With the environment variable `SCREENSHOTS` the tests leave their screenshots in that folder:

    SCREENSHOTS=docs/screenshots python -m pytest clipfarm_dagster_tests/browser
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

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
def platform(browser: Browser, shared_folder: Path) -> Iterator[Platform]:
    """`clipfarm dev` over the small corpus; nothing is embedded yet."""
    # the folder's name is seen on screenshots, so it is a short one
    with tempfile.TemporaryDirectory(prefix="clipfarm-") as home:
        platform = Platform(Path(home), shared_folder / "media")
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
        if folder is None:
            return
        page.mouse.move(0, 0)
        notices = page.get_by_role("region", name="Notifications").get_by_role("listitem")
        expect(notices).to_have_count(0)
        page.wait_for_timeout(1000)  # for pictures' sake: what fades in has done so
        with Image.open(io.BytesIO(page.screenshot())) as picture:
            palette = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            palette.save(Path(folder) / f"{name}.png", optimize=True)

    return shoot
