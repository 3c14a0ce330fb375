"""Models behind an API that speaks OpenAI's protocol (hosted ones, vLLM), as networks that answer in words.

The official client retries what fails with back-off, and waits as long as a server with a rate limit asks. The key is
read from the environment (OPENAI_API_KEY) and written nowhere. Every answer is stored as it comes, so none is asked for
twice; the record states tokens and cost.
"""

import base64
import hashlib
import io
import json
import logging
import os
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imagenet_biases.base.errors import UserError, clean
from imagenet_biases.networks.vlm import CUT_OFF, QUESTION
from imagenet_biases.vocabulary import identified

logger = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
NO_KEY = "none"  # the client wants one; a server of one's own takes any
RETRIES = 8  # with pauses that double up to 8 s, or as long as the server asks


@dataclass(frozen=True)
class Endpoint:
    """How a model is asked.

    Attributes:
        base: the address of the API, e.g. http://localhost:8000/v1; None: OPENAI_BASE_URL, or OpenAI's.
        concurrency: requests at the same time.
        rate: requests per minute at most; None: as many as the server takes.
        price: US dollars per million tokens, (read, written).
        answers: a folder that stores answers as they come; None: they are not stored.
        timeout: seconds to wait for an answer.
    """

    base: str | None = None
    concurrency: float = 8
    rate: float | None = None
    price: tuple[float, float] | None = None
    answers: str | Path | None = None
    timeout: float = 300.0

    @classmethod
    def settings_from(cls, base: str | None, words: list[str]) -> dict[str, Any]:
        """Return the settings in NAME=VALUE words of a command line. Raises UserError for what is none."""
        settings: dict[str, Any] = {"base": base} if base else {}
        numbers = {"concurrency": 1, "rate": 1, "timeout": 1, "price": 2}
        for word in words:
            name, _, text = word.partition("=")
            try:
                values = list(map(float, text.split(",")))
            except ValueError:
                values = []
            lowest = 0 if name == "price" else 1
            if len(values) != numbers.get(name) or any(not lowest <= value < 1e9 for value in values):
                raise UserError(f"--api {word}: give concurrency=8, rate=60 (a minute), timeout=300 or price=2.5,10")
            settings[name] = tuple(values) if name == "price" else values[0]
        return settings


class AnswerFile:
    """Answers of one model, one JSON object per line, with the tokens that they took.

    Attributes:
        usage: requests, tokens_read and tokens_written of all answers, and the cost in US dollars where it is known.
    """

    def __init__(self, path: Path | None, price: tuple[float, float] | None) -> None:
        self.path, self.price = path, price
        self.usage: dict[str, Any] = {"requests": 0, "tokens_read": 0, "tokens_written": 0}
        self._texts: dict[str, str] = {}
        self._lock = threading.Lock()
        if path is not None and path.is_file():
            for line in path.read_text("utf-8").splitlines():
                try:
                    self._count(json.loads(line))
                except (ValueError, KeyError, TypeError):  # the last line of a process that was killed
                    continue

    def get(self, key: str) -> str | None:
        """Return the answer to a question, ending in CUT_OFF where it reached the limit; None if there is none yet."""
        return self._texts.get(key)

    def add(self, key: str, text: str, **facts: Any) -> str:
        """Store an answer; return it as `get` does."""
        row = {"key": key, "text": text, **facts}
        with self._lock:
            self._count(row)
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            return self._texts[key]

    def _count(self, row: dict[str, Any]) -> None:
        self._texts[row["key"]] = row["text"] + CUT_OFF * int(row.get("ended") == "length")
        self.usage["requests"] += 1
        self.usage["tokens_read"] += row["read"]
        self.usage["tokens_written"] += row["written"]
        cost = row.get("cost")
        if cost is None and self.price:
            cost = (self.price[0] * row["read"] + self.price[1] * row["written"]) / 1e6
        if cost is not None:
            self.usage["cost_usd"] = round(self.usage.get("cost_usd", 0) + cost, 9)


@identified("api_model")
class ApiModel(torch.nn.Module):
    """A model behind an API: pixels in [0, 1] and a question -> one answer per image. Images are sent as PNG."""

    answers = "words"
    asks = ("text", "tokens", "letters")

    def __init__(self, model: str, client: Any, endpoint: Endpoint, stored: AnswerFile) -> None:
        super().__init__()
        self._model, self._client, self._endpoint, self._stored = model, client, endpoint, stored
        self.request: dict[str, Any] = {"temperature": 0}  # beside the question; what the model takes of it
        self._limit = "max_completion_tokens"
        self._turn, self._lock = 0.0, threading.Lock()

    def forward(
        self, pixels: Float[Tensor, "B 3 H W"], text: str = QUESTION, tokens: int = 64, letters: str | None = None
    ) -> list[str]:
        if letters:
            raise UserError(f"api:{self._model} gives no probabilities of letters; use --decode greedy")
        rows = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        with ThreadPoolExecutor(int(self._endpoint.concurrency)) as pool:
            answers = [pool.submit(self._answer, row, text, tokens) for row in rows]
            try:
                return [answer.result() for answer in answers]
            except BaseException:
                for answer in answers:
                    answer.cancel()  # those under way are awaited and stored
                raise

    def _answer(self, row: np.ndarray, text: str, tokens: int) -> str:
        """Return the answer on one image, stored or new."""
        file = io.BytesIO()
        Image.fromarray(row).save(file, "PNG")
        question = json.dumps([self._model, self._endpoint.base, text, tokens]).encode()
        key = hashlib.sha256(row.tobytes() + question).hexdigest()
        answer = self._stored.get(key)
        if answer is None:
            url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
            reply = self._ask([{"role": "user", "content": content}], tokens)
            choice, usage = reply.choices[0], reply.usage
            answer = (choice.message.content or choice.message.refusal or "").strip()
            facts = {"read": 0, "written": 0, "ended": choice.finish_reason, "cost": getattr(usage, "cost", None)}
            if usage is not None:
                facts |= {"read": usage.prompt_tokens, "written": usage.completion_tokens}
            answer = self._stored.add(key, answer, **facts)
        return answer

    def _ask(self, messages: list[dict[str, Any]], tokens: int) -> Any:
        """Return the reply to one question. Raises UserError where the server refuses or cannot be reached."""
        import openai

        while True:
            self._wait_for_turn()
            options = self.request | {self._limit: tokens}
            try:
                return self._client.chat.completions.create(model=self._model, messages=messages, **options)
            except openai.BadRequestError as error:
                if not self._without(str(error), options):
                    raise UserError(self._problem(error)) from None
            except openai.OpenAIError as error:
                raise UserError(self._problem(error)) from None

    def _without(self, reason: str, options: dict[str, Any]) -> bool:
        """Do without an option that the model does not take; return whether there is one."""
        with self._lock:
            if self._limit in options and self._limit in reason and self._limit != "max_tokens":
                self._limit = "max_tokens"
            elif "temperature" in options and "temperature" in reason:
                if self.request.pop("temperature", None) is not None:
                    logger.warning("warning: api:%s takes no temperature: its answers are drawn", self._model)
            else:
                return False
        return True

    def _wait_for_turn(self) -> None:
        """Wait until the next request is due under the rate that the user sets."""
        if self._endpoint.rate:
            with self._lock:
                now = time.monotonic()
                self._turn = max(now, self._turn) + 60 / self._endpoint.rate
                pause = self._turn - 60 / self._endpoint.rate - now
            time.sleep(pause)

    def _problem(self, error: Exception) -> str:
        """Return why a request failed, in one line without the key."""
        reason = str(getattr(error, "message", "") or error)
        key = os.environ.get(KEY)
        reason = clean(reason.replace(key, "...") if key else reason, 300)
        place = f"api:{self._model} at {self._client.base_url}"
        return f"{place}: {type(error).__name__}: {reason}; the same command resumes after the answers so far"


def api_model(model: str, endpoint: Endpoint) -> tuple[ApiModel, dict[str, Any]]:
    """Return (ApiModel, facts) of a model's name at an endpoint; nothing is asked yet.

    Raises:
        UserError: the client is not installed, there is no key, or the address contains one.
    """
    try:
        import openai
    except ImportError:
        raise UserError(f"api:{model} needs the client openai: pip install openai") from None
    base = endpoint.base or os.environ.get("OPENAI_BASE_URL")
    key = os.environ.get(KEY) or (NO_KEY if base else None)
    if key is None:
        raise UserError(f"api:{model}: the environment variable {KEY} has no key; set it, or give --api-base URL")
    address = urllib.parse.urlsplit(base or "https://api.openai.com/v1")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(f"--api-base {base}: give an address such as http://localhost:8000/v1")
    if address.username or address.password or address.query:
        raise UserError(f"--api-base contains a key or password, which would be written down; give it in {KEY}")
    client = openai.OpenAI(api_key=key, base_url=base, max_retries=RETRIES, timeout=endpoint.timeout)
    source = address.geturl().rstrip("/")
    name = hashlib.sha256(f"{model}\n{source}".encode()).hexdigest()[:16]
    path = Path(endpoint.answers) / f"{name}.jsonl" if endpoint.answers else None
    stored = AnswerFile(path, endpoint.price)
    body = ApiModel(model, client, endpoint, stored)
    # the last two change while it is measured: a record states them as they are when it is written
    return body, {"source": source, "arch": model, "usage": stored.usage, "request": body.request}
