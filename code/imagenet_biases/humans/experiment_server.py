"""The local server of a session: its page, its pixels, and the answers, for one browser tab of this machine.

It listens on 127.0.0.1 only, and every address begins with a secret of this process. Requests whose Host or Origin is
another's are refused: other sites cannot reach it through the visitor's browser, nor by a name that they point here.
"""

import hmac
import http.server
import json
import re
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from imagenet_biases.base.errors import UserError, clean
from imagenet_biases.base.schema import Malformed, Text, parsed
from imagenet_biases.humans.experiment import Session, Trial, mask, pixels, png
from imagenet_biases.images.preprocessing import Unreadable

PAGE = Path(__file__).with_name("experiment_page")
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
LARGEST_BODY = 1 << 16
ABSENT = 15.0  # seconds of silence after which another tab may take over
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Request(TypedDict):
    """What every request of the page holds: which tab it comes from."""

    tab: Text


class Laboratory:
    """What the requests of one session share.

    Args:
        page: what the page is told besides the state of the session, JSON-able.
        jspsych: the library's file.
    """

    def __init__(self, session: Session, practice: Sequence[Trial], page: dict[str, Any], jspsych: Path) -> None:
        self.session, self.practice, self.page = session, practice, page
        self.token = secrets.token_urlsafe(24)
        self.finished = threading.Event()
        self.files = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES} | {
            "jspsych.js": jspsych,
            "": PAGE / "page.html",
        }
        self._tab, self._seen = "", 0.0
        self._reading = threading.Lock()

    def claim(self, tab: str) -> bool:
        """Whether a tab has the session, or can have it because no other tab is there."""
        with self._reading:
            now = time.monotonic()
            if self._tab not in ("", tab) and now - self._seen < ABSENT:
                return False
            self._tab, self._seen = tab, now
            return True

    def owns(self, tab: str) -> bool:
        """Whether a tab has the session; tells that it is still there."""
        with self._reading:
            if not tab or tab != self._tab:
                return False
            self._seen = time.monotonic()
            return True

    def release(self, tab: str) -> None:
        """Give the session back: the tab is closed."""
        with self._reading:
            if tab == self._tab:
                self._tab = ""

    def state(self) -> dict[str, Any]:
        """Return what the page needs to begin or to resume."""
        session = self.session
        practice = [trial.category for trial in self.practice] if not session.done else []
        progress = {"next": session.done, "trials": len(session.trials), "display": session.display}
        return self.page | progress | {"practice": practice}

    def picture(self, kind: str, source: str, number: int) -> bytes | None:
        """Return the PNG of a trial's stimulus or mask, None where there is no such trial. Raises Unreadable."""
        trials = self.practice if source == "practice" else self.session.trials
        if number >= len(trials):
            return None
        make = pixels if kind == "stimulus" else mask
        with self._reading:
            return png(make(trials[number], self.session.settings["seed"]))

    def posted(self, action: str, body: Any) -> tuple[int, Any]:
        """Return (status, reply) to what the page says. Raises Malformed."""
        tab = body["tab"]
        if action == "claim":
            return (200, self.state()) if self.claim(tab) else (409, {"text": self.page["texts"]["other_tab"]})
        if action == "release":
            self.release(tab)
        elif not self.owns(tab):
            return 409, {}
        elif action == "display":
            self.session.display = body.get("value")
        elif action == "answer":
            done = self.session.answer(body.get("value"))
            if done == len(self.session.trials):
                self.finished.set()
        return 200, {"next": self.session.done}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers a request; `laboratory` is set by `serve`."""

    laboratory: Laboratory
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return
        laboratory = self.laboratory
        if path in laboratory.files:
            file = laboratory.files[path]
            self._reply(200, file.read_bytes(), TYPES[Path(path or "page.html").suffix])
        elif match := re.fullmatch(r"(stimulus|mask)/(session|practice)/(\d{1,6})", path):
            try:
                content = laboratory.picture(match[1], match[2], int(match[3]))
            except (Unreadable, OSError) as error:
                print(f"error: {clean(error)}", flush=True)
                return self._refuse(500, f"an image cannot be read: {clean(error)}")
            if content is None:
                return self._refuse(404, "no such trial")
            self._reply(200, content, "image/png")
        else:
            self._refuse(404, "no such page")

    def do_POST(self) -> None:
        path = self._path()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Origin") is None:
            return self._refuse(403, "no origin")
        if not (length.isascii() and length.isdecimal() and len(length) < 12) or int(length) > LARGEST_BODY:
            return self._refuse(413, "too long")
        if path not in ("claim", "alive", "display", "answer", "release"):
            return self._refuse(404, "no such action")
        try:
            body = parsed(self.rfile.read(int(length)), Request)
            status, reply = self.laboratory.posted(path, body)
        except Malformed as error:
            return self._refuse(400, str(error))
        self._reply(status, json.dumps(reply).encode(), "application/json")

    def _path(self) -> str | None:
        """Return what follows the secret in the address; None for a request that is refused."""
        port = self.server.server_port  # type: ignore[attr-defined]
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in hosts or origin not in (None, *(f"http://{host}" for host in hosts)):
            self._refuse(403, "another origin")
            return None
        _, token, *rest = f"{self.path.partition('?')[0]}/".split("/", 2)
        if not hmac.compare_digest(token.encode(), self.laboratory.token.encode()):
            self._refuse(403, "not the address that the terminal shows")
            return None
        return rest[0].removesuffix("/") if rest else ""

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # its body is not read
        self._reply(status, why.encode(), "text/plain; charset=utf-8")

    def _reply(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Write no line per request."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore a connection that the browser ends."""


def serve(laboratory: Laboratory) -> tuple[http.server.ThreadingHTTPServer, str]:
    """Start the server of a session on a free port of 127.0.0.1; return it with the page's address."""
    handler = type("Handler", (_Handler,), {"laboratory": laboratory})
    try:
        server = _Server(("127.0.0.1", 0), handler)
    except OSError as error:
        raise UserError(f"no server can be started on 127.0.0.1: {error}") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/{laboratory.token}/"
