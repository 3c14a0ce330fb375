"""Models behind an API: the official client against a server on this machine that speaks OpenAI's protocol."""

import base64
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from common import run
from imagenet_biases.base.errors import UserError
from imagenet_biases.humans.answers import NAMES
from imagenet_biases.networks.api import Endpoint, api_model

openai = pytest.importorskip("openai")

KEY = "sk-secret-0123456789abcdef"
PAIRS = [(shape, texture) for shape in range(16) for texture in range(16) if shape != texture][::8]  # 30


class Service(ThreadingHTTPServer):
    """Names the shape, which it sees in an image's red; `trouble` maps the number of a request to what goes wrong.

    `asked` has (image, question) of every answered request, `most` how many were under way at the same time.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.trouble, self.times, self.keys, self.refuses = [], {}, [], set(), ()
        self.cut = {}  # {shape: what the answer reaches of its limit}
        self.count = self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.base = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        """Return (status, headers, body) of a chat completion."""
        for name in self.refuses:
            if name in request:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                return 400, {}, {"error": {"message": message, "type": "invalid_request_error", "param": name}}
        (message,) = request["messages"]
        picture = next(part for part in message["content"] if part["type"] == "image_url")["image_url"]["url"]
        text = next(part for part in message["content"] if part["type"] == "text")["text"]
        head, _, data = picture.partition(",")
        assert head == "data:image/png;base64" and request["model"] == "tiny/seer-7B"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        options = [line[3:] for line in text.splitlines() if line[1:3] == ". "]
        name = NAMES[int(pixels[0, 0, 0]) // 16]
        reply = "ABCDEFGHIJKLMNOP"[options.index(name)] + "." if options else f"A {name}."
        reply, ended = (self.cut[name], "length") if name in self.cut else (reply, "stop")
        self.asked.append((pixels.tobytes(), text))
        choice = {"index": 0, "finish_reason": ended, "message": {"role": "assistant", "content": reply}}
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
        return 200, {}, {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request["model"],
            "choices": [choice],
            "usage": usage,
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.count += 1
            number = server.count
            server.under_way += 1
            server.most = max(server.most, server.under_way)
            server.times.append(time.monotonic())
            server.keys.add(self.headers["Authorization"])
        time.sleep(0.01)
        with server.lock:
            status, headers, body = server.trouble.get(number) or server.answer(request)
            server.under_way -= 1
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


def failure(status, message="busy", **headers):
    return status, headers, {"error": {"message": message, "type": "error", "param": None, "code": None}}


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    service = Service()
    yield service
    service.shutdown()
    service.server_close()


@pytest.fixture(scope="module")
def conflicts(tmp_path_factory):
    """Cue-conflict images whose shape is told by their red and whose texture by their green."""
    root = tmp_path_factory.mktemp("release")
    for shape, texture in PAIRS:
        folder = root / "cue-conflict" / NAMES[shape]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (224, 224), (16 * shape + 8, 16 * texture + 8, 0))
        picture.save(folder / f"{NAMES[shape]}1-{NAMES[texture]}1.png")
    (root / "image-set.json").write_text(json.dumps({"images": {"cue-conflict": len(PAIRS)}}))
    return root


def measured(service, conflicts, results, *words, model="api:tiny/seer-7B"):
    base = ("--model", model, "--api-base", service.base, "--model-vs-human", conflicts, "--results", results)
    return run("eval_vlm.py", *base, "--wandb", "offline", "--num-workers", 0, "--batch-size", 10, *words)


def record_in(results):
    return json.loads((results / "seer-7B" / "vlm.json").read_text())


def test_a_model_behind_an_api_is_measured_and_its_key_written_nowhere(service, conflicts, tmp_path):
    words = ("--task", "vqa", "caption", "--parser", "own", "--api", "concurrency=4", "--api", "price=2.5,10")
    status, _, err = measured(service, conflicts, tmp_path, *words)
    assert status == 0, err
    record = record_in(tmp_path)
    assert record["metrics"]["shape-bias/vqa"] == record["metrics"]["shape-bias/caption"] == 1
    assert record["metrics"]["top1_acc/cue-conflict-either/vqa"] == 100
    usage = record["provenance"]["usage"]
    requests = 2 * len(PAIRS)
    assert usage["requests"] == requests == len(set(service.asked)) == service.count
    assert usage["tokens_read"] == 100 * requests and usage["tokens_written"] == 2 * requests
    assert usage["cost_usd"] == pytest.approx(requests * (100 * 2.5 + 2 * 10) / 1e6)
    assert record["provenance"]["request"] == {"temperature": 0}
    assert record["provenance"]["source"] == service.base and 1 < service.most <= 4
    assert service.keys == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and any(path.suffix == ".jsonl" for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def test_an_interrupted_run_resumes_without_asking_twice(service, conflicts, tmp_path):
    service.trouble = {17: failure(401, f"Incorrect API key provided: {KEY}")}
    status, _, err = measured(service, conflicts, tmp_path)
    assert status and "Incorrect API key" in err and KEY not in err
    answered = len(service.asked)
    assert 10 < answered < len(PAIRS)
    status, _, err = measured(service, conflicts, tmp_path)
    assert status == 0, err
    assert len(service.asked) == len(set(service.asked)) == len(PAIRS)
    assert record_in(tmp_path)["provenance"]["usage"]["requests"] == len(PAIRS)
    before = service.count
    assert measured(service, conflicts, tmp_path).returncode == 0 and service.count == before
    assert measured(service, conflicts, tmp_path, "--fresh").returncode == 0 and service.count == before + len(PAIRS)


@pytest.mark.parametrize("before", (170, 190, 270, 280, 290))
def test_no_part_of_the_key_is_left_where_a_long_message_is_cut(service, conflicts, tmp_path, before):
    service.trouble = {1: failure(401, "-" * before + KEY + "-" * 200)}
    status, _, err = measured(service, conflicts, tmp_path)
    assert status == 2 and "..." in err and "secret" not in err and "abcdef" not in err


def test_answers_that_reach_the_limit_are_counted(service, conflicts, tmp_path):
    shapes = [NAMES[shape] for shape, _ in PAIRS]
    service.cut = {shapes[0]: "The shape is that of", shapes[-1]: None}
    lost = sum(shape in service.cut for shape in shapes)
    assert 0 < lost < len(PAIRS)
    for _ in range(2):  # the second from the stored answers
        status, _, err = measured(service, conflicts, tmp_path)
        record = record_in(tmp_path)
        assert status == 0 and record["details"]["cut_off"] == {"vqa": lost}
        line = f"{lost} of {len(PAIRS)} answers state no category because they were cut off: give models that think"
        assert line in err and any(line in warning for warning in record["warnings"])
        assert record["metrics"]["metric/vlm/unparsed"] == pytest.approx(lost / len(PAIRS))
        for path in (tmp_path / "seer-7B").rglob("*.npz"):
            path.unlink()
        (tmp_path / "seer-7B" / "vlm.json").unlink()
    assert len(service.asked) == len(PAIRS)


def test_busy_servers_and_rate_limits_are_waited_for(service, conflicts, tmp_path):
    trouble = (failure(429, "Rate limit reached", **{"retry-after": "0.2"}), failure(500), failure(503))
    service.trouble = dict(zip((2, 5, 9), trouble, strict=True))
    status, _, err = measured(service, conflicts, tmp_path)
    assert status == 0, err
    assert service.count == len(PAIRS) + 3 and len(set(service.asked)) == len(PAIRS)
    assert record_in(tmp_path)["metrics"]["shape-bias/vqa"] == 1


def test_requests_keep_to_the_users_rate(service, conflicts, tmp_path):
    words = ("--limit", 6, "--allow-partial", "--api", "rate=1200", "--api", "concurrency=6")
    assert measured(service, conflicts, tmp_path, *words).returncode == 0
    assert len(service.times) == 6 and service.times[-1] - service.times[0] >= 5 * 60 / 1200 - 0.02


def test_options_that_a_model_does_not_take_are_left_out(service, conflicts, tmp_path):
    service.refuses = ("temperature", "max_completion_tokens")
    status, _, err = measured(service, conflicts, tmp_path, "--api", "concurrency=1")
    assert status == 0, err
    assert "takes no temperature" in err and service.count == len(PAIRS) + 2
    assert record_in(tmp_path)["provenance"]["request"] == {}


@pytest.mark.parametrize(
    "words, message",
    [
        (("--api-base", "http://me:word@127.0.0.1/v1"), "contains a key or password"),
        (("--api-base", "http://127.0.0.1/v1?key=1"), "contains a key or password"),
        (("--api-base", "nowhere"), "give an address"),
        (("--api", "concurrency=0"), "give concurrency=8"),
        (("--api", "speed=9"), "give concurrency=8"),
        (("--api", "price=1"), "give concurrency=8"),
        (("--decode", "likelihood"), "--decode greedy"),
        (("--dry-run",), "--dry-run cannot estimate"),
    ],
)
def test_what_cannot_be_asked_gets_one_line(service, conflicts, tmp_path, words, message):
    status, _, err = measured(service, conflicts, tmp_path / "r", *words)
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert status and message in errors[0] and not service.count, err
    assert not any("word@" in path.read_text("utf-8", "replace") for path in tmp_path.rglob("*.json"))


def test_without_a_key_or_the_client_there_is_one_line(service, conflicts, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        api_model("x", Endpoint())
    assert measured(service, conflicts, tmp_path).returncode == 0  # a server of one's own needs none
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="pip install openai"):
        api_model("x", Endpoint(base=service.base))
