"""Fixtures of several tests of this folder."""

import http.server
import threading
from types import SimpleNamespace

import pytest


@pytest.fixture
def mirror(monkeypatch):
    """A local server of files: {path: bytes}; counts what was asked for."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("MODEL_VS_HUMAN_RELEASE", f"http://127.0.0.1:{server.server_port}/")
    yield SimpleNamespace(files=files, asked=asked, address=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()
