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
from playwright.sync_api import Browser, Page, Playwright, ViewportSize, expect, sync_playwright

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
    # nothing beyond this machine is reached, whatever a page asks for
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
WINDOW: ViewportSize = {"width": 1440, "height": 900}
WEBGL_OPTIONS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL 2 without a GPU; only what draws by WebGL is to pay for it."""

CALM_PAGE = """
window.requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 200);
window.cancelAnimationFrame = clearTimeout;
document.addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "*, *::before, *::after { animation: none !important; transition: none !important }";
    document.head.append(style);
});
"""
"""Five pictures a second and no animations: without a GPU, the live pages of Dagster's UI draw their spinners
and time lines sixty times a second on the processor, and take a core from the runs that they show."""


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright, which ends the browsers that it started."""
    with sync_playwright() as playwright:
        yield playwright


def start_chromium(playwright: Playwright, *options: str) -> Browser:
    """Debian's chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium (apt-get install chromium)")
    return playwright.chromium.launch(executable_path=chromium, args=[*CHROMIUM_OPTIONS, *options])


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A browser without WebGL."""
    browser = start_chromium(playwright)
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
    page = browser.new_page(viewport=WINDOW)
    page.add_init_script(CALM_PAGE)
    yield page
    page.close()


@pytest.fixture
def webgl_page(playwright: Playwright) -> Iterator[Page]:
    """An empty page of a browser with WebGL."""
    browser = start_chromium(playwright, *WEBGL_OPTIONS)
    yield browser.new_page(viewport=WINDOW)
    browser.close()


@pytest.fixture
def ui(page: Page, platform: Platform) -> DagsterUI:
    """Dagster's UI over the platform."""
    return DagsterUI(page, platform.url)


@pytest.fixture
def shoot(page: Page) -> Callable[[str], None]:
    """Take a screenshot of Dagster's UI for the documentation, where one is wanted."""

    def shoot(name: str) -> None:
        if "SCREENSHOTS" not in os.environ:
            return
        page.mouse.move(0, 0)
        notices = page.get_by_role("region", name="Notifications").get_by_role("listitem")
        expect(notices).to_have_count(0)
        save_screenshot(page, name)

    return shoot


def save_screenshot(page: Page, name: str) -> None:
    """Keep a small PNG of the page in the folder that `SCREENSHOTS` names, if it does."""
    if "SCREENSHOTS" not in os.environ:
        return
    page.wait_for_timeout(1000)  # for pictures' sake: what fades in has done so
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        palette = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        palette.save(Path(os.environ["SCREENSHOTS"]) / f"{name}.png", optimize=True)
