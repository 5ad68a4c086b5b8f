"""A Prefect server and an S3 server (moto) that count what they are asked, for `benchmarks.orchestration`.

    python -m benchmarks.servers prefect PORT        the API of `prefect server start`, services included, in SQLite
    python -m benchmarks.servers s3 PORT             or wherever PREFECT_SERVER_DATABASE_CONNECTION_URL says

Both are the real servers behind a few lines that count. `GET /__counts__` gives the counts so far as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

COUNTS = "/__counts__"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_EVENT = re.compile(r'"event":\s*"([^"]+)"')


class CountingApi:
    """ASGI: requests by method and path, messages of websockets by the event that they carry."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.counts: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection."""
        if scope["type"] == "http" and scope["path"] == COUNTS:
            body = json.dumps(self.counts).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
            return
        if scope["type"] == "http":
            self.counts[f"{scope['method']} {_UUID.sub('*', scope['path']).removeprefix('/api')}"] += 1

        async def counted() -> Any:
            message = await receive()
            if message["type"] == "websocket.receive":
                text = message.get("text") or (message.get("bytes") or b"").decode(errors="replace")
                event = _EVENT.search(text)
                self.counts[f"EVENT {event[1] if event else scope['path']}"] += 1
                self.counts["event bytes"] += len(text)
            elif message["type"] == "http.request":
                self.counts["request bytes"] += len(message.get("body") or b"")
            return message

        await self.app(scope, counted, send)


class CountingS3:
    """WSGI: requests by kind and by what they are about."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.lock = app, threading.Lock()
        self.counts: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """One request."""
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path == COUNTS:
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.counts).encode()]
        method = environ["REQUEST_METHOD"]
        kind = "LIST" if method == "GET" and "list-type=2" in query else method
        about = re.search(r"prefix=([^&]*)", query)[1] if kind == "LIST" and "prefix=" in query else path  # type: ignore[index]
        with self.lock:
            self.counts[f"{kind} {_about(about.replace('%2F', '/').replace('%3D', '='))}"] += 1
        return self.app(environ, start)


def _about(path: str) -> str:
    tables = "pivots|deltas|metrics|locality|rejects"
    kinds = f"config.json|manifest|done/|done|work|report|{tables}|runs/[^/]+/?$|runs"
    found = re.search(kinds, path)
    return re.sub(r"runs/.*", "runs/<run>", found[0]) if found else "other"


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("prefect", "s3"))
    parser.add_argument("port", type=int)
    args = parser.parse_args()
    kind, port = args.kind, args.port
    if kind == "prefect":
        import uvicorn
        from prefect.server.api.server import create_app

        uvicorn.run(CountingApi(create_app()), host="127.0.0.1", port=port, log_level="error", ws_max_size=2**24)
    else:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, run_simple

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, as at AWS

            def log_request(self, *args: Any) -> None:
                pass

        app = CountingS3(DomainDispatcherApplication(create_backend_app))
        run_simple("127.0.0.1", port, app, threaded=True, request_handler=Quiet)


if __name__ == "__main__":
    main()
