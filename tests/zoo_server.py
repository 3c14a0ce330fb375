"""A web server on this machine that stands in for the hosts of the zoo's files, and the way there for every client.

Requests for any other host are sent to it in the transport of `requests` (so gdown and the harness run their real code,
up to the socket); huggingface_hub is sent there by HF_ENDPOINT, its own way. What it serves is a dict of Reply.
"""

import contextlib
import hashlib
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests


@dataclass
class Reply:
    """What an address answers: a file or bytes, and what goes wrong with it."""

    content: Path | bytes
    status: int = 200
    kind: str = "application/octet-stream"
    ranges: bool = True  # whether the server can go on in the middle
    cut: list = field(default_factory=list)  # per request: the connection ends after so many bytes
    busy: int = 0  # so many requests are first answered 503
    big: bool = False  # Google Drive asks for confirmation first
    headers: dict = field(default_factory=dict)

    @property
    def data(self):
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


CONFIRM = (
    "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="hidden" name="id" value="{0}"><input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t"></form></body></html>'
)
QUOTA = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""
GONE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>There is nothing here.</body></html>"


class Server:
    """`replies` maps address (as the harness has it: https://…, hf://…, gdrive://…) to Reply; `log` has requests."""

    def __init__(self):
        self.replies, self.log = {}, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                server.answer(self, body=False)

            def do_GET(self):
                server.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.web.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.web.server_port}"
        threading.Thread(target=self.web.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler, body):
        host = handler.headers.get("X-Meant-For", "hub")
        parts = urllib.parse.urlsplit(handler.path)
        query = urllib.parse.parse_qs(parts.query)
        if host.endswith("google.com"):
            address = "gdrive://" + (query["id"][0] if "id" in query else parts.path.split("/")[3])
        elif host == "hub":
            address = "hf://" + parts.path.lstrip("/").replace("/resolve/main/", "/", 1)
            address = re.sub(r"/resolve/[0-9a-f]{40}/", "/", address)
        else:
            address = f"https://{host}{handler.path}"
        self.log.append((handler.command, address, handler.headers.get("Range")))
        reply = self.replies.get(address, Reply(GONE, 404, "text/html; charset=utf-8"))
        if reply.busy:
            reply.busy -= 1
            reply = Reply(b"busy", 503, "text/plain")
        if reply.big and "confirm" not in query:
            reply = Reply(CONFIRM.format(query["id"][0]).encode(), 200, "text/html; charset=utf-8")
        data, status, headers = reply.data, reply.status, dict(reply.headers)
        if status == 200 and host == "hub":
            digest = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": digest[:40]} | headers
        if status == 404 and host == "hub":
            headers["X-Error-Code"] = "EntryNotFound"
        if status == 200 and host.endswith("google.com") and not reply.kind.startswith("text/html"):
            headers |= {"Content-Disposition": 'attachment; filename="weights.pth"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
        same = handler.headers.get("If-Range") in (None, headers.get("ETag"))
        if asked and reply.ranges and same and status == 200:
            start = int(asked[1])
            stop = min(int(asked[2]) + 1, len(data)) if asked[2] else len(data)
            if start >= len(data):
                status, headers, data = 416, {"Content-Range": f"bytes */{len(data)}"}, b""
            else:
                status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{len(data)}"
                data = data[start:stop]
        handler.send_response(status)
        for name, value in {"Content-Type": reply.kind, "Content-Length": len(data), **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        if body:
            cut = reply.cut.pop(0) if reply.cut else len(data)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                handler.wfile.write(data[:cut])
            if cut < len(data):
                handler.close_connection = True

    def reach(self, monkeypatch):
        """Send everything that this process asks of other hosts here."""
        send = requests.adapters.HTTPAdapter.send

        def redirected(adapter, request, **options):
            parts = urllib.parse.urlsplit(request.url)
            if parts.hostname != "127.0.0.1":
                request.headers["X-Meant-For"] = parts.hostname
                request.url = self.address + parts.path + (f"?{parts.query}" if parts.query else "")
            return send(adapter, request, **options)

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)
        monkeypatch.setenv("HF_ENDPOINT", self.address)

    def close(self):
        self.web.shutdown()
        self.web.server_close()


def fetch_in_a_process(address, folder, results):
    """What a process of a test does: fetch, and put the bytes into the queue `results`."""
    from imagenet_biases.base import download

    results.put(download.fetch(address, folder).read_bytes())
