"""The W&B client against a small server that speaks its protocol: deleted runs, sweeps."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common import CODE, outside, run, script


class Service(ThreadingHTTPServer):
    """Accepts every run but those in `deleted`; `opened` lists the ids that it has accepted."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.deleted, self.opened, self.delete_next = set(), [], 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = 200, {}
        if self.path == "/graphql":
            status, answer = self.graph(json.loads(body))
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST

    def graph(self, request):
        name, values = request.get("operationName"), request.get("variables") or {}
        if name == "UpsertBucket" and values.get("name"):
            number = values["name"]
            if self.server.delete_next and number not in self.server.opened:
                self.server.delete_next -= number not in self.server.deleted
                self.server.deleted.add(number)
            if number in self.server.deleted:
                message = f"run {number} was previously created and deleted; try a new run name"
                return 409, {"errors": [{"message": message}]}
            if number not in self.server.opened:
                self.server.opened.append(number)
            project = {"id": "p", "name": values.get("project"), "entity": {"id": "e", "name": "me"}}
            bucket = {"id": f"b{number}", "name": number, "displayName": number, "config": "{}", "project": project}
            return 200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if name == "CreateRunFiles":
            names = [{"name": file, "uploadUrl": f"http://{self.headers['Host']}/up"} for file in values["files"]]
            return 200, {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": names}}}
        return 200, {"data": {}}


@pytest.fixture
def service():
    service = Service()
    yield service
    service.shutdown()
    service.server_close()


def measured(service, drawn, folder, names="calibration_texture", **environment):
    """Measure online; return stderr."""
    words = ["eval_imagenet.py", "--model", names, "--data", drawn, "--results", folder, "--limit", 4]
    result = script(
        *words,
        WANDB_API_KEY="0123456789" * 4,
        WANDB_BASE_URL=f"http://127.0.0.1:{service.server_port}",
        WANDB_INIT_TIMEOUT="8",
        WANDB_MODE="online",
        HOME=str(folder),
        **environment,
    )
    return result.stderr


@pytest.mark.slow
def test_a_deleted_run_gets_a_new_id_and_the_others_stay_online(service, drawn, tmp_path):
    service.delete_next = 1
    err = measured(service, drawn, tmp_path, "calibration_texture,calibration_silhouette")
    assert len(service.opened) == 2 and len(service.deleted) == 1 and not service.deleted & set(service.opened)
    assert err.count("was deleted; it gets a new id") == 1 and "offline" not in err, err


@pytest.mark.slow
def test_a_run_whose_further_ids_are_deleted_too_is_alone_offline(service, drawn, tmp_path):
    service.delete_next = 3
    err = measured(service, drawn, tmp_path, "calibration_texture,calibration_silhouette")
    assert len(service.opened) == 1 and len(service.deleted) == 3
    assert "1 W&B runs are offline" in err, err


def test_a_sweep_leaves_wandb_alone_and_says_so_once(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "run12345")
    words = ["--model", "calibration_texture", "--data", drawn, "--results", tmp_path, "--limit", 4]
    older = tmp_path / "wandb" / "offline-run-20260101_000000-run12345"
    older.mkdir(parents=True)
    err = run("eval_imagenet.py", *words, "--wandb", "offline", check=True).stderr
    assert err.count("W&B is left alone") == 1
    assert list((tmp_path / "wandb").iterdir()) == [older]


@pytest.mark.slow
def test_an_agents_id_deletes_no_other_records_folder(drawn, tmp_path):
    """A launch agent replaces the ids of runs as a sweep does: what other records left offline under it stays."""
    older = tmp_path / "wandb" / "offline-run-20260101_000000-agent123"
    older.mkdir(parents=True)
    words = [sys.executable, str(CODE / "eval_imagenet.py"), "--model", "calibration_texture", "--data", str(drawn)]
    words += ["--results", str(tmp_path), "--limit", "4", "--wandb", "offline"]
    environment = outside() | {"WANDB_LAUNCH": "true", "WANDB_RUN_ID": "agent123"}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    runs = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert older.name in runs and len(runs) == 2 and all(name.endswith("-agent123") for name in runs)
