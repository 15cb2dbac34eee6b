"""A small HTTP server in front of an S3 server, which breaks the answers for single keys.

Requests go on as they came, the Host header with them, so their signatures stay valid.
"""

from __future__ import annotations

import http.client
import itertools
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from workbench.seaweedfs import S3Server

_OF_THE_CONNECTION = {"connection", "transfer-encoding", "content-length", "date", "server", "expect"}


@dataclass
class Answer:
    """What the server said, and how the proxy says it."""

    status: int
    headers: dict[str, str]
    body: bytes
    length: int | None = None
    """The Content-Length to tell; None for the body's own."""
    sent: int | None = None
    """Bytes of the body after which the connection is cut; None sends all."""
    seconds_a_byte: float = 0.0
    reset: bool = False
    """Reset the connection without a word."""


Fault = Callable[[Answer], Answer]


def refuse(code: str, status: int = 403) -> Fault:
    """S3's error `code`."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'.encode()
    return lambda _: Answer(status, {"Content-Type": "application/xml"}, body)


def refuse_in_bulk(key: str) -> Fault:
    """S3's answer to a deletion of many that one of them may not be removed."""
    removed = f"<Deleted><Key>{key}</Key></Deleted>".encode()
    kept = f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error>".encode()
    return lambda answer: replace(answer, body=answer.body.replace(removed, kept))


def cut(answer: Answer) -> Answer:
    """Half of the body, and the end of the connection."""
    return replace(answer, sent=len(answer.body) // 2)


def drip(seconds_a_byte: float) -> Fault:
    """One byte after the other."""
    return lambda answer: replace(answer, seconds_a_byte=seconds_a_byte)


def reset(answer: Answer) -> Answer:
    """No answer, but a reset of the connection."""
    return replace(answer, reset=True)


def truncate(answer: Answer) -> Answer:
    """Half of the body, with headers that say that this is all."""
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def claim_more(answer: Answer) -> Answer:
    """A Content-Length beyond the body."""
    return replace(answer, length=len(answer.body) + 100, sent=len(answer.body))


def swap_body(body: bytes) -> Fault:
    """Other bytes under the headers of the object."""
    return lambda answer: replace(answer, body=body)


def wrong_etag(answer: Answer) -> Answer:
    """The object's bytes under an ETag that it never had."""
    headers = {name: value for name, value in answer.headers.items() if name.lower() != "etag"}
    return replace(answer, headers={**headers, "ETag": '"0123456789abcdef0123456789abcdef"'})


def after(requests: int, fault: Fault) -> Fault:
    """`fault`, once there have been some requests."""
    numbers = itertools.count(1)
    return lambda answer: fault(answer) if next(numbers) > requests else answer


def encrypted_by_kms(answer: Answer) -> Answer:
    """The object as S3 gives one that KMS encrypts: its ETag is no MD5."""
    lied = wrong_etag(answer)
    return replace(lied, headers={**lied.headers, "x-amz-server-side-encryption": "aws:kms"})


class S3Proxy:
    """The running proxy; faults may be set and taken back at any time, from any thread."""

    def __init__(self, server: S3Server) -> None:
        self._behind = urlsplit(server.endpoint_url).netloc
        self._faults: list[tuple[str, re.Pattern[str], Fault]] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        """Requests that came, by method and key; listings by the method `LIST`, those of versions by
        `VERSIONS`, and the prefix."""
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self.server = replace(server, endpoint_url=f"http://127.0.0.1:{self._http.server_port}")
        """The S3 server as it is reached through here."""

    def break_(self, method: str, key: str, fault: Fault) -> None:
        """From now on answer requests of `method` for keys that match the pattern `key` by `fault`; the
        methods `LIST` and `VERSIONS` are for listings, by their prefix. The latest that matches counts."""
        with self._lock:
            self._faults.insert(0, (method, re.compile(key), fault))

    def mend(self) -> None:
        """Take all faults back."""
        with self._lock:
            self._faults.clear()

    def _fault(self, method: str, key: str) -> Fault | None:
        with self._lock:
            self.requests[method, key] += 1
            matching = (fault for name, keys, fault in self._faults if name == method and keys.search(key))
            return next(matching, None)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@contextmanager
def s3_proxy(server: S3Server) -> Iterator[S3Proxy]:
    """A proxy for the time of a block."""
    proxy = S3Proxy(server)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        key = unquote(parts.path.lstrip("/").partition("/")[2])
        method = self.command
        listing = {"list-type": "LIST", "versions": "VERSIONS"}
        asked = parse_qs(parts.query, keep_blank_values=True)
        if method == "GET" and (named := listing.keys() & asked.keys()):
            method, key = listing[named.pop()], asked.get("prefix", [""])[0]
        fault = self.proxy._fault(method, key)
        answer = self._ask(body)
        self._say(fault(answer) if fault is not None else answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _ask(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.proxy._behind, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in _OF_THE_CONNECTION}
            length = response.getheader("Content-Length")
            data = response.read()
            head = self.command == "HEAD" and length is not None
            return Answer(response.status, kept, data, length=int(length) if head and length else None)
        finally:
            connection.close()

    def _say(self, answer: Answer) -> None:
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            length = len(answer.body) if answer.length is None else answer.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self._send(answer)
        except OSError:  # who asked has gone
            self.close_connection = True

    def _send(self, answer: Answer) -> None:
        body = answer.body[: answer.sent]
        if answer.seconds_a_byte:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(answer.seconds_a_byte)
        else:
            self.wfile.write(body)
        if answer.sent is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
