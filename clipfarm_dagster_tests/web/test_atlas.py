"""The embedding viewer's server answers its own page, and no other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from clipfarm_dagster_tests.support.servers import Server, ask, free_port, running

pytest.importorskip("embedding_atlas", reason="the viewer is not installed (make browser installs it)")

PROGRAM = """
import sys, pyarrow as pa
from clipfarm_dagster.web.atlas import serve_atlas
texts = {name: ["a", "b"] for name in ("video_id", "title", "thumbnail")}
serve_atlas(pa.table({**texts, "x": [0.0, 1.0], "y": [1.0, 0.0]}), "test", int(sys.argv[1]), frozenset())
"""
SQL = json.dumps({"type": "json", "sql": "SELECT title FROM dataset ORDER BY x"})
SELECTION = json.dumps({"predicate": None, "format": "csv"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The viewer over two rows, with a cache folder of its own."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    line = [sys.executable, "-c", PROGRAM, str(port)]
    with running(line, port, "/", home, {"XDG_CACHE_HOME": str(home / "cache")}) as server:
        yield server


def test_its_own_page_is_answered(server: Server) -> None:
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}

    status, headers, page = ask(server, "GET", "/", {})
    assert (status, headers["X-Frame-Options"]) == (200, "DENY")
    assert "<script" in page
    metadata = json.loads(ask(server, "GET", "/data/metadata.json", own)[2])
    assert metadata["props"]["data"]["projection"] == {"x": "x", "y": "y"}
    status, _, rows = ask(server, "POST", "/data/query", {**own, "Content-Type": "application/json"}, SQL)
    assert (status, json.loads(rows)) == (200, [{"title": "a"}, {"title": "b"}])
    # the page sends these two without a content type of its own
    status, _, rows = ask(server, "POST", "/data/selection", own, SELECTION)
    assert (status, len(rows.splitlines())) == (200, 3)
    assert ask(server, "POST", "/data/cache/labels", own, "[1]")[0] == 200
    assert ask(server, "GET", "/data/cache/labels", own)[2] == "[1]"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/", None),
        ("GET", "/data/metadata.json", None),
        ("GET", "/data/dataset.parquet", None),
        ("GET", "/data/archive.zip", None),
        ("POST", "/data/query", SQL),
        ("POST", "/data/selection", SELECTION),
        ("POST", "/data/cache/evil", "[1]"),
    ],
)
def test_no_other_page_is_answered(server: Server, method: str, target: str, body: str | None) -> None:
    json_body = {"Content-Type": "application/json"}

    assert ask(server, method, target, {**json_body, "Host": "evil.example"}, body)[0] == 400
    assert ask(server, method, target, {**json_body, "Origin": "http://evil.example"}, body)[0] == 403
    assert ask(server, method, target, {**json_body, "Sec-Fetch-Site": "cross-site"}, body)[0] == 403
    assert ask(server, "GET", "/data/cache/evil", {})[0] == 404


def test_sql_is_sent_as_json_alone(server: Server) -> None:
    assert ask(server, "GET", "/data/query?" + urlencode({"query": SQL}), {})[0] == 405
    assert ask(server, "POST", "/data/query", {"Content-Type": "text/plain"}, SQL)[0] == 415


def test_sigterm_ends_it(server: Server) -> None:
    assert server.stop() == 0
