"""Models that see and write: transformers' image-text-to-text models as networks that answer in words.

transformers and sentence-transformers are optional (requirements-language.txt) and imported when they are needed.
Weights are read from safetensors only, and no code from the hub runs unless the user says so.
"""

import contextlib
from pathlib import Path

import torch

from imagenet_biases.base.errors import UserError
from imagenet_biases.networks.user_code import class_id
from imagenet_biases.vocabulary import identified

ASKED = "Describe the image. Keep your response short."  # where a benchmark has no question of its own


@identified(class_id("answerer"))
class Answerer(torch.nn.Module):
    """A transformers model and its processor: pixels [B, 3, H, W] in [0, 1] and a question -> B answers.

    With `letters` ("ABC...") it gives the scores of these letters as the first token of the answer, float32
    [B, letters], instead of writing. The model is no submodule: it keeps its own precision, bfloat16 on a GPU.
    """

    answers = "words"
    asks = ("text", "tokens", "letters")

    def __init__(self, model, processor):
        super().__init__()
        self._held = (model, processor)
        self._letters = {}

    @property
    def model(self):
        return self._held[0]

    def forward(self, pixels, text=ASKED, tokens=64, letters=None):
        model, processor = self._held
        if model.device != pixels.device:
            model.to(pixels.device, torch.bfloat16 if pixels.is_cuda else torch.float32)
        inputs = self._inputs(pixels, text).to(model.device, model.dtype)
        if letters:
            made = model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            return torch.stack([made.logits[0][:, ids].float().logsumexp(1) for ids in self._tokens(letters)], 1)
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        if not model.config.is_encoder_decoder:
            written = written[:, inputs["input_ids"].shape[1] :]
        return [answer.strip() for answer in processor.batch_decode(written, skip_special_tokens=True)]

    def _inputs(self, pixels, text):
        from PIL import Image

        rows = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        talks = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": Image.fromarray(row)}, {"type": "text", "text": text}],
                }
            ]
            for row in rows
        ]
        return self._held[1].apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _tokens(self, letters):
        """Return for each letter the tokens that write it, with or without a blank before it."""
        if letters not in self._letters:
            tokenizer, found = self._held[1].tokenizer, []
            for letter in letters:
                ids = [tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}")]
                found.append(sorted({one[0] for one in ids if len(one) == 1 and one[0] != tokenizer.unk_token_id}))
            several = [token for ids in found for token in ids]
            if not all(found) or len(several) != len(set(several)):
                raise UserError("the model's tokenizer has no token of its own for each letter; use --decode greedy")
            self._letters[letters] = found
        return self._letters[letters]


def vision_language_model(name, trust_remote_code=False):
    """Return (Answerer, facts) of `ID` or `ID@REVISION` on the Hugging Face hub, or of a folder that holds a model.

    Raises UserError for what is no image-text-to-text model, lacks weights, has no chat template or asks for its own
    code to be run.
    """
    place, _, revision = name.partition("@")
    with _one_line(f"hf:{name}", "transformers"):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        how = {"revision": revision or None, "trust_remote_code": trust_remote_code}
        processor = AutoProcessor.from_pretrained(place, **how)
        model, loaded = AutoModelForImageTextToText.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **how
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
        "source": f"hf://{place}" if not Path(place).is_dir() else "a folder",
        "revision": getattr(model.config, "_commit_hash", None),
        "arch": type(model).__name__,
        "chat_template": processor.chat_template,
    }
    return Answerer(model, processor), facts


_encoders = {}


def sentence_embeddings(texts, name):
    """Return the L2-normalised embeddings of texts by a sentence-transformers model, float32 [N, D]."""
    if name not in _encoders:
        with _one_line(f"the sentence model {name}", "sentence_transformers", "; --parser own does without it"):
            from sentence_transformers import SentenceTransformer

            _encoders[name] = SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    return _encoders[name].encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


@contextlib.contextmanager
def _one_line(what, package, more=""):
    """Turn whatever a hub or its content brings about into one line (UserError)."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        if (error.name or "").partition(".")[0] == package:
            raise UserError(
                f"{what} needs {package.replace('_', '-')}: pip install -r requirements-language.txt{more}"
            ) from None
        raise UserError(f"{what} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise UserError(
                f"{what} wants code of its own to be run; read it, and give --trust-remote-code if you trust it"
            ) from None
        raise UserError(f"{what} cannot be loaded: {type(error).__name__}: {reason[:200]}{more}") from None
