"""Servers that answer with a signed link, as those of models and data sets do: what fails there shows no signature."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pti_core import reading
from pti_core.connections import harmless, out_of_resources
from pti_core.datasets import DatasetError, scan
from pti_core.generators.checkpoints import CheckpointError, load_generator
from pti_core.reading import ReadError, read_bytes

SECRET = "wJalrXUtnFEMIbPxRfiCY"


class Handler(BaseHTTPRequestHandler):
    """All below /STATUS/ leads to a signed link, of which the size is told and GET is answered with this status."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/signed/head") and self.command == "HEAD" else self.status)
        self.send_header("Content-Length", "0" if self.command == "GET" else "100000")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Location", f"/signed{self.path}?X-Amz-Signature={SECRET}")
        self.end_headers()

    do_HEAD = do_GET

    @property
    def status(self) -> int:
        """307 for the first answer."""
        found = self.path.removeprefix("/signed/head").removeprefix("/signed")
        return int(found.split("/")[1]) if self.path.startswith("/signed") else 307

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("place", ["403", "500", "head/500"])
@pytest.mark.parametrize(
    ("read", "name", "kind"),
    [
        (scan, "0.png", DatasetError),
        (scan, "faces.parquet", DatasetError),
        (scan, "list/*.png", DatasetError),
        (read_bytes, "0.png", ReadError),
        (load_generator, "ffhq.pkl", CheckpointError),
    ],
)
def test_what_fails_behind_a_signed_link_shows_it_nowhere(
    web: str, monkeypatch: pytest.MonkeyPatch, place: str, read: Callable[[str], Any], name: str, kind: type[Exception]
) -> None:
    monkeypatch.setattr(reading, "READ_WAITS", ())
    with pytest.raises(kind) as caught:
        read(f"{web}/{place}/{name}")
    assert f"url='{web}/signed/{place}/{name}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))  # as Prefect's logs have it


def test_a_cause_is_kept_unless_it_or_its_own_holds_a_secret() -> None:
    plain, signed = OSError("no answer"), OSError("no answer")
    signed.__context__ = OSError(f"403 of https://host/0.png?sig={SECRET}")
    assert harmless(plain) is plain
    assert harmless(signed) is None
    assert harmless(OSError(f"key {SECRET}"), {"secret": SECRET}) is None
    signed.__suppress_context__ = True  # then it is not printed
    assert harmless(signed) is signed


def test_an_error_that_is_its_own_cause_is_looked_at_once() -> None:
    error = OSError("no answer")
    error.__cause__ = error
    assert harmless(error) is error
    assert out_of_resources(error) is None
    error.add_note(f"asked https://host/0.png?sig={SECRET}")  # which is printed as well
    assert harmless(error) is None
