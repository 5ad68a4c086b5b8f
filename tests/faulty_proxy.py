"""An HTTP proxy before a server: it counts what passes, and fails requests as it is told."""

from __future__ import annotations

import http.client
import itertools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KINDS = ("500", "503", "dropped before", "dropped after", "cut", "stalled")
"""What may befall a request: an error; the connection ends before or after the server has acted on it; the answer ends
half way; no answer for longer than a client waits."""

_ERRORS = {"500": (500, "InternalError"), "503": (503, "SlowDown")}


@dataclass
class Proxy:
    """Where it listens, what passed it, and what it does. Nothing fails until a test sets `fault`."""

    url: str = ""
    fault: Callable[[str, str], str | None] = lambda method, path: None
    stall: float = 3.0  # seconds
    requests: Counter[str] = field(default_factory=Counter)  # by method
    received: Counter[str] = field(default_factory=Counter)  # bytes of answers' bodies, by method
    faults: Counter[str] = field(default_factory=Counter)  # by kind

    def reset(self) -> None:
        """Count from zero."""
        for counter in (self.requests, self.received, self.faults):
            counter.clear()


def some(share: float, seed: int) -> Callable[[str, str], str | None]:
    """A fault for this share of all requests, chosen by chance; each kind in turn."""
    chance, kinds = random.Random(seed), itertools.cycle(KINDS)
    return lambda method, path: next(kinds) if chance.random() < share else None


def outage(times: int, kind: str) -> Callable[[str, str], str | None]:
    """A fault for the first so many requests of each method to each path."""
    seen: Counter[tuple[str, str]] = Counter()

    def fault(method: str, path: str) -> str | None:
        seen[method, path] += 1
        return kind if seen[method, path] <= times else None

    return fault


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    """A proxy in threads of this process."""
    target, state, lock = urlsplit(url), Proxy(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.server_side = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)

        def finish(self) -> None:
            self.server_side.close()
            super().finish()

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                fault = state.fault(self.command, self.path)
                state.requests[self.command] += 1
                state.faults[fault or ""] += 1
            if fault in _ERRORS:
                status, code = _ERRORS[fault]
                answer = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                self.answer(status, [("Content-Type", "application/xml"), ("Content-Length", len(answer))], answer)
            elif fault == "stalled":
                time.sleep(state.stall)
                self.close_connection = True
            elif fault == "dropped before":
                self.drop()
            else:
                status, headers, data = self.ask(body)
                if fault == "dropped after" or (fault == "cut" and not data):
                    self.drop()
                elif fault == "cut":
                    self.answer(status, headers, data[: len(data) // 2])
                    self.drop()
                else:
                    self.answer(status, headers, data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

        def ask(self, body: bytes) -> tuple[int, list[tuple[str, Any]], bytes]:
            self.server_side.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    self.server_side.putheader(name, value)
            self.server_side.endheaders(body)
            response = self.server_side.getresponse()
            data = response.read()
            dropped = ("connection", "transfer-encoding", "content-length")
            headers: list[tuple[str, Any]] = [h for h in response.getheaders() if h[0].lower() not in dropped]
            size = response.headers.get("Content-Length") if self.command == "HEAD" else len(data)
            return response.status, [*headers, ("Content-Length", size or 0)], data

        def answer(self, status: int, headers: list[tuple[str, Any]], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
                with lock:
                    state.received[self.command] += len(data)

        def drop(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that go away are what this is for."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
