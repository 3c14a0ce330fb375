"""Adversarial robustness: accuracy on images changed by at most eps per pixel so as to be misclassified.

Papers: Madry et al., ICLR 2018, arXiv:1706.06083 (PGD); Goodfellow et al., ICLR 2015, arXiv:1412.6572 (FGSM);
        Croce & Hein, ICML 2020, arXiv:2003.01690 (AutoAttack). The published setting is that of Gavrikov & Keuper,
        CVPR 2024, arXiv:2404.01509: 40 steps of 2/255, a random start, the last iterate.
Data:   ILSVRC-2012 validation, as for eval_imagenet.py; --limit N attacks N images only.
Run:    python code/eval_imagenet_adv.py --model tv_resnet50 --imagenet DIR --limit 1000
        ... --attack pgd fgsm tuned    ... --attack autoattack (needs: pip install pyautoattack)
        ... --attack pgd --eps 1/255 --step-size 0.25/255    ... --attack pgd-l2 --eps-l2 0.5 3
Gives:  top1_acc/ATTACK/low (eps = 0.5/255) and /high (4/255) for PGD-40, FGSM and, on request, PGD-tuned, AutoAttack;
        other settings go by names of their own, and so does PGD in the l2 ball (PGD-l2-40/eps-0.5). The published step
        is four times the low eps, which makes a weak attack: PGD-tuned is the well-tuned one. Published PGD-40 of the
        48 networks: low 12 to 66, high 0 to 39; torchvision's ResNet-50 (tv_resnet50) has 18.31 and 0.00.
"""

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from imagenet_biases.base.errors import UserError
from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.accuracy import accuracies, correct, top
from imagenet_biases.stimuli.attacks import auto_attack, fgsm, length, linf_size, pgd, pgd_l2, tuned_pgd
from imagenet_biases.study import ATTACK_EPSILONS
from imagenet_biases.vocabulary import CLEAN, Benchmark, Condition, Data, Metrics, Option, Pass, Results

STEPS, STEP_SIZE = 40, 2 / 255  # published
ATTACKS = ("pgd", "fgsm", "tuned", "autoattack", "pgd-l2")
OPTIONS = (
    Option("attack", ATTACKS[:2], "tuned takes three times as long as pgd", choices=ATTACKS, several=True),
    Option("eps", None, "largest change, e.g. 4/255 (default: both published levels)", type=linf_size),
    Option("eps_l2", (0.5,), "of pgd-l2: largest norms of the change of an image", type=length, several=True),
    Option("steps", STEPS, "of pgd, pgd-l2 and tuned", type=int),
    Option("step_size", STEP_SIZE, "of pgd, e.g. 2/255", type=linf_size),
)


def conditions(
    attack: Sequence[str], eps: float | None, eps_l2: Sequence[float], steps: int, step_size: float
) -> Iterator[Condition]:
    """Yield the requested attacks; only the published settings get the published names."""
    if steps < 1:
        raise UserError(f"--steps {steps}: give 1 or more")
    sizes = ATTACK_EPSILONS if eps is None else {level_of(eps): eps}
    count = "" if steps == STEPS else f"-steps-{steps}"
    for level, size in sizes.items():
        if "pgd" in attack:
            yield _pgd(level, size, steps, step_size)
        if "fgsm" in attack:
            yield fgsm(f"FGSM/{level}", size)
        if "tuned" in attack:
            yield tuned_pgd(f"PGD-tuned/{level}{count}", size, steps)
        if "autoattack" in attack:
            yield auto_attack(f"AutoAttack/{level}", size)
    if "pgd-l2" in attack:
        yield from (pgd_l2(f"PGD-l2-{steps}/eps-{size:g}", size, steps) for size in eps_l2)


def _pgd(level: str, size: float, steps: int, step_size: float) -> Condition:
    published = math.isclose(step_size, STEP_SIZE) and steps == STEPS and level in ATTACK_EPSILONS
    if step_size > size and not published:
        text = f"--step-size {255 * step_size:g}/255 is above eps, {255 * size:g}/255: a weak attack"
        warnings.warn(text, stacklevel=2)
    step = "" if published else f"-step-{255 * step_size:g}"
    return pgd(f"PGD-{steps}/{level}{step}", size, steps, step_size)


def level_of(eps: float) -> str:
    """Return 'low' or 'high' for a published level, else the number in 255ths."""
    for level, value in ATTACK_EPSILONS.items():
        if math.isclose(eps, value):
            return level
    return f"eps-{255 * eps:g}"


def passes(data: Data, **options: Any) -> list[Pass]:
    """Show the validation images as they are and as each attack changes them."""
    return [Pass(image_set("imagenet", data), (CLEAN, *conditions(**options)))]


def report(results: Results) -> Metrics:
    """Yield the clean accuracy and the accuracy under each attack; warn of an attack that raises it."""
    clean = results["imagenet", CLEAN.name]
    yield from accuracies(clean, "imagenet")
    for (_, name), attacked in results.items():
        if attacked is clean:
            continue
        if correct(attacked).sum() > correct(clean).sum():
            warnings.warn(
                f"accuracy under {name} is above the clean one: this network's gradients are misleading", stacklevel=2
            )
        yield f"top1_acc/{name}", top(attacked)


BENCHMARK = Benchmark("imagenet_adv", passes, report, options=OPTIONS, headline=("top1_acc/*",))

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())
