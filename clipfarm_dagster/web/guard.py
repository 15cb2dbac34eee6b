"""Keeps web pages of other origins away from a server on 127.0.0.1 that asks nobody for a password.

Such a server is reached by its own user's browser, and so by every page that the browser shows. What tells a
page's request from the user's: `Host` (a page whose own name was rebound to 127.0.0.1 cannot change it),
`Origin` (sent with every POST and WebSocket handshake of another origin) and `Sec-Fetch-Site` (sent with all
else). None of them can be set by a page. Programs send neither of the last two, and are let in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
"""The only address that is listened at."""

_HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NO_FRAMES = "frame-ancestors 'none'"


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: int
    reason: str


def own_hosts(port: int) -> frozenset[str]:
    """What `Host` says where the server is asked at its own address, on the port given."""
    names = (ADDRESS, "localhost", "[::1]")
    with_port = {f"{name}:{port}" for name in names}
    return frozenset(with_port | set(names) if port == 80 else with_port)


@dataclass(frozen=True)
class Guard:
    """Who is let in.

    Args:
        port: the port that is served.
        other_hosts: other names under which the server is reached, as a proxy's, with a port where the
            browser's address has one.
        operations: paths whose GET with a `query` does what the query says; they are asked by POST of JSON
            alone, which no form can send.
    """

    port: int
    other_hosts: frozenset[str] = frozenset()
    operations: frozenset[str] = frozenset()

    def refusal(self, connection: HTTPConnection) -> Refusal | None:
        """Why this request or handshake is refused; `None` lets it in."""
        return (
            self._host_refusal(connection) or self._page_refusal(connection) or self._form_refusal(connection)
        )

    def is_visit(self, connection: HTTPConnection) -> bool:
        """Whether another site's page leads the browser here, with nothing but a page to show."""
        headers = connection.headers
        return (
            connection.scope["type"] == "http"
            and connection.scope["method"] == "GET"
            and headers.get("sec-fetch-site") in ("cross-site", "same-site")
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )

    def _host_refusal(self, connection: HTTPConnection) -> Refusal | None:
        hosts = [host.lower() for host in connection.headers.getlist("host")]
        known = own_hosts(self.port) | self.other_hosts
        if len(hosts) == 1 and hosts[0] in known:
            return None
        asked, served = ", ".join(map(repr, hosts)) or "nobody", ", ".join(sorted(known))
        return Refusal(
            400,
            f"this server is {served}, not {asked}; put a proxy's name into CLIPFARM_ALLOWED_HOSTS",
        )

    def _page_refusal(self, connection: HTTPConnection) -> Refusal | None:
        headers = connection.headers
        own = {headers["host"].lower(), *self.other_hosts}
        for origin in headers.getlist("origin"):
            scheme, _, host = origin.lower().partition("://")
            if scheme not in ("http", "https") or host not in own:
                return Refusal(403, f"a page of another origin, {origin!r}, may not use this server")
        # browsers disagree about the site of a handshake, but all of them tell its origin
        if connection.scope["type"] == "websocket" or self.is_visit(connection):
            return None
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none"):
            return Refusal(403, f"a page of another site ({site}) may not use this server")
        return None

    def _form_refusal(self, connection: HTTPConnection) -> Refusal | None:
        if connection.scope["type"] == "websocket":
            return None
        path, method = connection.scope["path"].rstrip("/"), connection.scope["method"]
        if path not in self.operations:
            return None
        if method == "POST":
            content_type = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type != "application/json":
                return Refusal(415, f"{path} accepts only POST of application/json, not of {content_type!r}")
        elif "query" in connection.query_params:
            return Refusal(405, f"{path} accepts only POST of application/json, not {method}")
        return None


class GuardMiddleware:
    """Lets through to `app` what the guard lets in, and answers the rest with a sentence.

    A visit from another site's page gets the start page, whatever its path: an app that lives in one page
    shows the address that was asked for, and nothing else can be fetched so. No answer may be framed, or
    read by a page of another origin.
    """

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = self._guard.refusal(connection)
        if refusal is not None:
            logger.warning(
                "refused %s %r: %s", scope.get("method", "handshake"), scope["path"], refusal.reason
            )
            await _refuse(scope, receive, send, refusal)
            return
        visit = self._guard.is_visit(connection)
        if visit:
            scope = {**scope, "path": "/", "raw_path": b"/", "query_string": b""}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                headers = MutableHeaders(scope=message)
                _guard_headers(headers)
                if visit:  # what lies at this address by right may be another thing
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_guarded)


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    response = PlainTextResponse(f"{refusal.reason}\n", refusal.status, dict(_HEADERS))
    await response(scope, receive, send)


def _guard_headers(headers: MutableHeaders) -> None:
    for name in [name for name in headers if name.startswith("access-control-")]:
        del headers[name]
    for name, value in _HEADERS.items():
        headers[name] = value
    headers.append("Content-Security-Policy", _NO_FRAMES)  # of several policies each must agree
