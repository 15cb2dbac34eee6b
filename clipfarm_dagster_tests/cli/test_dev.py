"""`clipfarm dev`: what it serves works, and answers nobody but its own user's browser and programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster_tests.support.servers import Server, ask, graphql, serving

HEALTH_SECONDS = 120
PROXY = "clipfarm.example"
SELECTOR = '{repositoryName: "__repository__", repositoryLocationName: "clipfarm"}'
ADD_PARTITION = (
    f"mutation {{addDynamicPartition(repositorySelector: {SELECTOR},"
    f' partitionsDefName: "{DEFAULT_NAMES.partitions_name}", partitionKey: "%s") {{__typename}}}}'
)
UI = "/_next/static/"
PARTITIONS = '{assetNodes(assetKeys: [{path: ["raw_text"]}]) {partitionKeys}}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`clipfarm dev` over an empty home, behind a proxy's name too."""
    home = tmp_path_factory.mktemp("home")
    with serving("dev", "/server_info", home, {"CLIPFARM_ALLOWED_HOSTS": PROXY}) as server:
        yield server


def partitions(server: Server) -> list[str]:
    """The partitions that the raw text has."""
    (node,) = graphql(server, PARTITIONS)["assetNodes"]
    return list(node["partitionKeys"])


def test_the_ui_is_served_and_cannot_be_framed_or_read_by_others(server: Server) -> None:
    status, headers, page = ask(server, "GET", "/assets", {})

    assert status == 200
    assert UI in page
    assert headers["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in headers.get_all("Content-Security-Policy", [])
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_own_pages_and_programs_may_change_things_and_the_code_can_be_reloaded(server: Server) -> None:
    for number, origin in enumerate((server.url, f"http://localhost:{server.port}", f"https://{PROXY}")):
        host = origin.partition("://")[2]
        own = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
        graphql(server, ADD_PARTITION % f"own-{number}", **own)
    graphql(server, ADD_PARTITION % "program")
    reloaded = graphql(
        server, 'mutation {reloadRepositoryLocation(repositoryLocationName: "clipfarm") {__typename}}'
    )

    assert reloaded["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry"
    assert {"own-0", "own-1", "own-2", "program"} <= set(partitions(server))


def test_the_daemon_runs(server: Server) -> None:
    query = "{instance {daemonHealth {allDaemonStatuses {daemonType healthy required}}}}"
    deadline = time.monotonic() + HEALTH_SECONDS
    while True:
        statuses = graphql(server, query)["instance"]["daemonHealth"]["allDaemonStatuses"]
        sick = [s["daemonType"] for s in statuses if s["required"] and not s["healthy"]]
        if not sick:
            return
        assert time.monotonic() < deadline, f"{sick}: {server.tail()}"
        time.sleep(1)


FOREIGN = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 405),
        ("GET", {"Accept": "text/html", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 405),
        ("POST", {}, 415),
        ("POST", {"Content-Type": "text/plain; x=application/json"}, 415),
        ("POST", {"Content-Type": "application/graphql"}, 415),
        ("POST", {**JSON, "Origin": "http://evil.example"}, 403),
        ("POST", {**JSON, "Origin": "http://127.0.0.1:1"}, 403),
        ("POST", {**JSON, "Origin": "null"}, 403),
        ("POST", {**JSON, "Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", {**JSON, "Sec-Fetch-Site": "same-site"}, 403),
        ("POST", {**JSON, "Host": "evil.example"}, 400),
        ("POST", {**JSON, "Host": "127.0.0.1"}, 400),
        ("POST", {**JSON, "Host": "127.0.0.1:1"}, 400),
        ("POST", {**JSON, "Host": f"{PROXY}:8443"}, 400),
    ],
)
def test_no_other_page_changes_anything(
    server: Server, method: str, headers: dict[str, str], status: int
) -> None:
    mutation = ADD_PARTITION % "evil"
    target, body = "/graphql?" + urlencode({"query": mutation}), None
    if method == "POST":
        graphql_body = "application/graphql" in headers.get("Content-Type", "")
        body = mutation if graphql_body else json.dumps({"query": mutation})
        target = "/graphql" if JSON.items() <= headers.items() else target

    got, answer, text = ask(server, method, target, headers, body)

    assert (got, answer.get_content_type()) == (status, "text/plain"), text
    assert not [name for name in answer if name.lower().startswith("access-control")]
    assert "evil" not in partitions(server)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/report_asset_materialization/raw_text?partition=evil"),
        ("POST", "/report_asset_observation/raw_text?partition=evil"),
        ("POST", "/report_asset_check/raw_text?check_name=x&passed=true"),
        ("GET", "/logs/x/compute_logs/y.out"),
        ("GET", "/notebook?path=/x.ipynb&repoLocName=clipfarm"),
        ("GET", "/download_debug/x"),
        ("GET", "/server_info"),
        ("GET", "/assets"),
        ("OPTIONS", "/graphql"),
    ],
)
def test_no_endpoint_answers_another_page(server: Server, method: str, target: str) -> None:
    assert ask(server, method, target, FOREIGN)[0] == 403
    assert ask(server, method, target, {"Host": "evil.example"})[0] == 400


def test_a_link_on_another_page_leads_to_the_ui_and_to_nothing_else(server: Server) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}

    for target in ("/runs", "/notebook?path=/x.ipynb&repoLocName=clipfarm", "/server_info"):
        status, headers, page = ask(server, "GET", target, link)
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert UI in page
    assert ask(server, "GET", "/runs", {**link, "Sec-Fetch-Dest": "iframe"})[0] == 403
    assert ask(server, "POST", "/runs", link)[0] == 403


def test_subscriptions_are_for_own_pages(server: Server) -> None:
    address = f"ws://127.0.0.1:{server.port}/graphql"
    protocols = [Subprotocol("graphql-ws")]

    with connect(address, origin=Origin(server.url), subprotocols=protocols) as socket:
        socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket.recv(timeout=60)) == {"type": "connection_ack"}
    for origin, host in (("http://evil.example", {}), (server.url, {"Host": "evil.example"})):
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin=Origin(origin), subprotocols=protocols, additional_headers=host)


def test_sigterm_ends_all_of_it_even_where_a_script_started_it(server: Server) -> None:
    assert len(server.processes()) >= 4

    assert server.stop() == 0


def test_it_says_what_ended_and_takes_the_rest_along(tmp_path: Path) -> None:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("no_such_setting: 1\n")

    with pytest.raises(RuntimeError, match="ended unexpectedly"), serving("dev", "/", tmp_path):
        pass
