"""Shape or texture, asked in words: models that see and write, on the cue-conflict images.

Paper:  Gavrikov et al., "Can We Talk Models Into Seeing the World Differently?", ICLR 2025, arXiv:2403.09193.
Data:   the cue-conflict images of model-vs-human: DIR/cue-conflict/...; --download fetches them. 80 of the 1,280 have
        the same category in both cues and are left out.
Run:    python code/eval_vlm.py --model hf:llava-hf/llava-1.5-7b-hf --model-vs-human DIR
        python code/eval_vlm.py --model hf:ID --task vqa caption --steer none shape texture --order circular ...
        python code/eval_vlm.py --model clip:ViT-L-14/openai --task clip16 --model-vs-human DIR
        python code/eval_vlm.py --model api:MODEL --api-base URL --model-vs-human DIR     vLLM, hosted models
        python code/eval_vlm.py --model answers:FILE.csv --task vqa         released or API answers, no model, no images
Gives:  shape-bias/TASK: answers that name the shape / answers that name the shape or the texture; under /shape and
        /texture the question asks for one cue, under /likelihood the letters' probabilities are read off, under
        /published the authors' rules read the answer (of captions: a sentence model).
        top1_acc/cue-conflict-either/TASK: answers that name either cue. metric/vlm/refused, unparsed, generic: answers
        that are no category; details.cut_off: answers that reached --max-new-tokens. order-spread, order-survive: what
        the order of the options does. Every answer is in results/MODEL/answers/.
        As published: LLaVA-NeXT 7B 0.597 at 82.7 %, GPT-4V 0.479 at 69.8 %, CLIP ViT-L/14 (80 templates) 0.610 at
        84.1 %; people 0.96.
"""

import sys
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.humans import questions
from imagenet_biases.vocabulary import Benchmark, Option


def _tokens(text: str) -> int:
    """Return a number of tokens. Raises ValueError for anything else."""
    if not 1 <= int(text) <= 65_536:
        raise ValueError(f"{text} is not a number of tokens from 1 to 65,536")
    return int(text)


OPTIONS = (
    Option(
        "task", ("vqa",), "what is asked: 16 options, a description, 16 names", choices=questions.TASKS, several=True
    ),
    Option("steer", ("none",), "the cue the question asks for", choices=tuple(questions.STEER), several=True),
    Option("prompt", "", "a question of your own before the options, in place of the published one"),
    Option("order", "alphabetical", "of the options", choices=("alphabetical", "circular")),
    Option("decode", ("greedy",), "written, or the letters' probabilities", choices=questions.DECODE, several=True),
    Option(
        "max_new_tokens", questions.TOKENS, "that a model may write; models that think need 2000 or more", type=_tokens
    ),
    Option("parser", ("own", "published"), "who reads the answers", choices=("own", "published"), several=True),
    Option("embedding", questions.EMBEDDING, "the sentence model that places captions under the published rules"),
    Option("answers", None, "files of answers to score, as --model answers:FILE", several=True),
    Option("download", False, "fetch the cue-conflict images", flag=True),
)

BENCHMARK = Benchmark(
    "vlm",
    questions.passes,
    questions.report,
    sets=("model-vs-human",),
    options=OPTIONS,
    details=questions.details,
    export=questions.export,
    without_network=questions.from_files,
    on_request=True,
    headline=("shape-bias/*", "top1_acc/cue-conflict-either/*", "metric/vlm/*"),
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())
