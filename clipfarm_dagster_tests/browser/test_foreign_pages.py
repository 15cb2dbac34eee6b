"""A page of another origin, in a real browser, changes nothing and reads nothing; the UI's own pages work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, Playwright, WebSocket, expect

from clipfarm_dagster_tests.browser.conftest import start_chromium
from clipfarm_dagster_tests.browser.foreign import FOREIGN_HOST, READS, RESOLVER, WRITES, foreign_page
from clipfarm_dagster_tests.cli.test_dev import ADD_PARTITION, partitions
from clipfarm_dagster_tests.support.servers import Server, serving

pytestmark = pytest.mark.xdist_group("browser")

WAYS = 13
QUERY = "/graphql?" + urlencode({"query": "{version}"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`clipfarm dev` over an empty home."""
    with serving("dev", "/server_info", tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def rebound(playwright: Playwright) -> Iterator[Browser]:
    """A browser to which another host is 127.0.0.1."""
    browser = start_chromium(playwright, RESOLVER)
    yield browser
    browser.close()


@pytest.fixture(params=[FOREIGN_HOST, "127.0.0.1"])
def foreign(request: pytest.FixtureRequest, rebound: Browser) -> Iterator[Page]:
    """A page of another site, and one of another port of 127.0.0.1."""
    with foreign_page() as port:
        page = rebound.new_page()
        page.goto(f"http://{request.param}:{port}/")
        yield page
        page.close()


def mutations(name: str, count: int) -> list[str]:
    """Mutations that leave a trace each."""
    return [ADD_PARTITION % f"{name}-{number}" for number in range(count)]


def own_fetch(page: Page, query: str) -> int:
    """Status of a query that a page asks its own server."""
    ask = """async body => (await fetch("/graphql", {
        method: "POST", body, headers: {"Content-Type": "application/json"},
    })).status"""
    status: int = page.evaluate(ask, json.dumps({"query": query}))
    return status


def test_the_ui_loads_changes_things_and_is_kept_up_to_date(server: Server, rebound: Browser) -> None:
    page = rebound.new_page()
    news: list[tuple[str, str]] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: news.append((socket.url, str(frame))))

    page.on("websocket", listen)
    page.goto(server.url + "/assets")

    expect(page.get_by_text("text_embedding").first).to_be_visible(timeout=30_000)
    assert own_fetch(page, ADD_PARTITION % "own") == 200
    assert "own" in partitions(server)
    assert {address for address, _ in news} == {f"ws://127.0.0.1:{server.port}/graphql"}
    assert any("connection_ack" in frame for _, frame in news)
    page.close()


def test_another_page_changes_nothing(server: Server, foreign: Page) -> None:
    before = partitions(server)

    socket = f"ws://127.0.0.1:{server.port}/graphql"
    answer = foreign.evaluate(WRITES, [server.url + "/graphql", mutations(foreign.url, WAYS), socket])

    assert partitions(server) == before
    assert answer == [WAYS, "refused"]


def test_another_page_changes_nothing_by_going_there(server: Server, foreign: Page) -> None:
    before = partitions(server)
    address = foreign.url
    link, form = mutations(address + "left", 2)

    with foreign.expect_navigation() as answer:
        foreign.evaluate("url => { location = url }", server.url + "/graphql?" + urlencode({"query": link}))
    assert (answer.value.url.partition("?")[0], answer.value.status) == (server.url + "/graphql", 405)
    foreign.goto(address)
    with foreign.expect_navigation(url=server.url + "/**") as answer:
        foreign.evaluate(
            """([action, value]) => {
                const form = Object.assign(document.createElement("form"), {action, method: "post"});
                form.append(Object.assign(document.createElement("textarea"), {name: "query", value}));
                document.body.append(form);
                form.submit();
            }""",
            [server.url + "/graphql?" + urlencode({"query": form}), form],
        )
    assert answer.value.status == 403
    assert partitions(server) == before


def test_another_page_reads_nothing(server: Server, foreign: Page) -> None:
    urls = [server.url + path for path in ("/", "/server_info", QUERY, "/logs/a/b.out")]

    assert foreign.evaluate(READS, urls) == []
    with foreign.context.expect_page() as opened:
        foreign.evaluate("url => { window.theirs = window.open(url) }", server.url + "/assets")
    expect(opened.value.get_by_text("text_embedding").first).to_be_visible(timeout=30_000)
    assert foreign.evaluate("window.theirs.closed"), "the page that was opened cannot be reached from here"


def test_a_rebound_name_is_not_answered(server: Server, rebound: Browser) -> None:
    before = partitions(server)
    page = rebound.new_page()

    answer = page.goto(f"http://{FOREIGN_HOST}:{server.port}/")

    assert answer is not None
    assert answer.status == 400
    assert "CLIPFARM_ALLOWED_HOSTS" in answer.text()
    assert own_fetch(page, ADD_PARTITION % "rebound") == 400
    assert own_fetch(page, "{version}") == 400
    assert partitions(server) == before
    page.close()
