"""Vision-language models: transformers' image-text-to-text models as networks that answer in words.

transformers and sentence-transformers are optional (requirements-language.txt) and imported when needed. Weights are
read from safetensors only, and no code from the hub runs unless the user allows it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.base.download import commit_in_cache
from imagenet_biases.base.errors import UserError
from imagenet_biases.networks.registry import split_revision
from imagenet_biases.networks.user_code import class_id, one_line
from imagenet_biases.vocabulary import identified

CUT_OFF = "<|cut off|>"  # ends an answer that reached the limit of tokens
QUESTION = "Describe the image. Keep your response short."  # for benchmarks without a question


@identified(class_id("answerer"), version=2)  # 1 ran bfloat16 on a GPU under the name of fp32
class Answerer(torch.nn.Module):
    """A transformers model and its processor: pixels in [0, 1] and a question -> one answer per image.

    With `letters` ("ABC...") it returns their scores as the first token of the answer, float32 [B, letters], instead
    of text. An answer that reaches the limit of tokens ends in CUT_OFF. The model is not a submodule; it runs in the
    precision of the surrounding autocast, else in float32.
    """

    answers = "words"
    asks = ("text", "tokens", "letters")

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self._model_and_processor = (model, processor)
        self._letters: dict[str, list[list[int]]] = {}

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model_and_processor[0]

    def forward(
        self, pixels: Float[Tensor, "B 3 H W"], text: str = QUESTION, tokens: int = 64, letters: str | None = None
    ) -> list[str] | Float[Tensor, "B letters"]:
        model, processor = self._model_and_processor
        kind = pixels.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if (model.device, model.dtype) != (pixels.device, dtype):
            model.to(pixels.device, dtype)
        inputs = self._inputs(pixels, text).to(model.device, model.dtype)
        if letters:
            generated = model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            return torch.stack([generated.logits[0][:, ids].float().logsumexp(1) for ids in self._tokens(letters)], 1)
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        if not model.config.is_encoder_decoder:
            written = written[:, inputs["input_ids"].shape[1] :]
        answers = [answer.strip() for answer in processor.batch_decode(written, skip_special_tokens=True)]
        if written.shape[1] < tokens:
            return answers
        ends = torch.tensor(_end_tokens(model, processor), device=written.device)
        cut_off = ~torch.isin(written[:, -1], ends)
        return [answer + CUT_OFF * int(cut) for answer, cut in zip(answers, cut_off.tolist(), strict=True)]

    def _inputs(self, pixels: Float[Tensor, "B 3 H W"], text: str) -> Any:
        from PIL import Image

        rows = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        talks = []
        for row in rows:
            content = [{"type": "image", "image": Image.fromarray(row)}, {"type": "text", "text": text}]
            talks.append([{"role": "user", "content": content}])
        return self._model_and_processor[1].apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _tokens(self, letters: str) -> list[list[int]]:
        """Return per letter the tokens that write it, with or without a blank before it."""
        if letters not in self._letters:
            tokenizer = self._model_and_processor[1].tokenizer
            by_letter: list[list[int]] = []
            for letter in letters:
                tokens: set[int] = set()
                for text in (letter, f" {letter}"):
                    ids = tokenizer.encode(text, add_special_tokens=False)
                    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                        tokens.add(ids[0])
                by_letter.append(sorted(tokens))
            distinct = set().union(*by_letter)
            if not all(by_letter) or len(distinct) != sum(map(len, by_letter)):
                raise UserError("the model's tokenizer lacks a separate token for each letter; use --decode greedy")
            self._letters[letters] = by_letter
        return self._letters[letters]


def _end_tokens(model: Any, processor: Any) -> list[int]:
    """Return the tokens after which a model writes no more, the padding among them."""
    ids = [processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id]
    stated = model.generation_config.eos_token_id
    ids += stated if isinstance(stated, list) else [stated]
    return [number for number in ids if number is not None]


def vision_language_model(name: str, trust_remote_code: bool = False) -> tuple[Answerer, dict[str, Any]]:
    """Return (Answerer, facts) of `ID` or `ID@REVISION` on the Hugging Face hub, or of a folder with a model.

    Args:
        name: as above.
        trust_remote_code: let the model run its own code.

    Raises:
        UserError: it is not an image-text-to-text model, lacks weights, has no chat template or wants to run its own
            code.
    """
    place, revision = split_revision(name)
    with one_line(f"hf:{name}"):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        options = {"revision": revision or None, "trust_remote_code": trust_remote_code}
        processor = AutoProcessor.from_pretrained(place, **options)
        loader: Any = AutoModelForImageTextToText
        model, loaded = loader.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    lacking = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if lacking:
        raise UserError(f"hf:{name} has no weights for {lacking[0]} and {len(lacking) - 1} more: it would be random")
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not getattr(processor, "chat_template", None):
        raise UserError(f"hf:{name} has no chat template: it cannot be asked a question as its authors mean it")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
    model.eval().requires_grad_(False)
    facts = {
        "source": f"hf://{name}" if not Path(place).is_dir() else "a folder",
        "revision": commit_in_cache(place, revision),
        "arch": type(model).__name__,
        "chat_template": processor.chat_template,
    }
    return Answerer(model, processor), facts


_encoders: dict[str, Any] = {}


def sentence_embeddings(texts: Iterable[str], name: str) -> Float[np.ndarray, "N D"]:
    """Return the L2-normalised embeddings of texts by a sentence-transformers model."""
    if name not in _encoders:
        with one_line(f"the sentence model {name}", advice="; --parser own does without it"):
            from sentence_transformers import SentenceTransformer

            _encoders[name] = SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    return _encoders[name].encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
