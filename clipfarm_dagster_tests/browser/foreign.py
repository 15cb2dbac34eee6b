"""A web page of another origin, and all that such a page can try against a server on 127.0.0.1."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOREIGN_HOST = "evil.example"
"""A name that the browser of these tests resolves to 127.0.0.1, as after DNS rebinding."""

RESOLVER = f"--host-resolver-rules=MAP {FOREIGN_HOST} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Kittens</title><body>")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def foreign_page() -> Iterator[int]:
    """An empty page at every path of 127.0.0.1, on the port that is yielded."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


WRITES = """async ([target, queries, socket]) => {
    const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));
    const get = query => target + "?" + new URLSearchParams({query});
    const json = query => JSON.stringify({query});
    const quiet = promise => promise.then(() => {}, () => {});
    const settled = element => new Promise(done => {
        element.onload = element.onerror = done;
        document.body.append(element);
    });
    const element = (name, more) => Object.assign(document.createElement(name), more);
    const framed = async (name, submit) => {
        const arrived = settled(element("iframe", {name}));
        await arrived;
        const answered = new Promise(done => document.querySelector(`[name=${name}]`).onload = done);
        submit(name);
        await Promise.race([answered, pause(3000)]);
    };
    const form = (method, query, fields, enctype) => name => {
        const made = element("form", {method, action: target, target: name, enctype});
        for (const [key, value] of fields) {
            made.append(element("input", {type: "hidden", name: key, value}));
        }
        document.body.append(made);
        made.submit();
    };
    const tries = [
        query => quiet(fetch(get(query), {mode: "no-cors"})),
        query => quiet(fetch(get(query), {mode: "no-cors", method: "POST"})),
        query => quiet(fetch(target, {mode: "no-cors", method: "POST", body: json(query)})),
        query => quiet(fetch(target, {
            mode: "no-cors", method: "POST", body: json(query),
            headers: {"Content-Type": "text/plain; charset=application/json"},
        })),
        query => quiet(fetch(target, {
            method: "POST", body: json(query), headers: {"Content-Type": "application/json"},
        })),
        query => settled(element("img", {src: get(query)})),
        query => settled(element("script", {src: get(query)})),
        query => settled(element("link", {rel: "stylesheet", href: get(query)})),
        query => Promise.race([settled(element("iframe", {src: get(query)})), pause(3000)]),
        query => framed("a", form("get", query, [["query", query]], "")),
        query => framed("b", form("post", query, [["query", query]], "multipart/form-data")),
        query => framed("c", form(
            "post", query, [[json(query).slice(0, -1) + ', "x": "', '"}']], "text/plain"
        )),
        async query => navigator.sendBeacon(get(query), json(query)),
    ];
    for (const [number, attempt] of tries.entries()) await attempt(queries[number]);
    const handshake = await new Promise(done => {
        const opened = new WebSocket(socket, "graphql-ws");
        opened.onopen = () => done("open");
        opened.onerror = () => done("refused");
    });
    await pause(500);
    return [tries.length, handshake];
}"""
"""Sends each of some mutations in another way; how many ways there are, and how a WebSocket fared."""

READS = """async urls => {
    const found = [];
    for (const url of urls) {
        try {
            found.push(await (await fetch(url)).text());
        } catch (error) {
            if (!(error instanceof TypeError)) throw error;
        }
        const frame = document.createElement("iframe");
        frame.src = url;
        await new Promise(done => { frame.onload = done; document.body.append(frame); });
        if (frame.contentDocument !== null) found.push(frame.contentDocument.body.innerText);
    }
    return found;
}"""
"""What can be read of some addresses by script or through a frame."""
