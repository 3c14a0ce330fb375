"""Adversarial robustness: accuracy on images changed by at most eps per pixel so as to be misclassified.

Papers: Madry et al., ICLR 2018, arXiv:1706.06083 (PGD); Goodfellow et al., ICLR 2015, arXiv:1412.6572 (FGSM);
        Croce & Hein, ICML 2020, arXiv:2003.01690 (AutoAttack). The published setting is that of Gavrikov & Keuper,
        CVPR 2024, arXiv:2404.01509: 40 steps of 2/255, a random start, the last iterate.
Data:   ILSVRC-2012 validation, as for eval_imagenet.py; --limit N attacks N images only.
Run:    python code/eval_imagenet_adv.py --model tv_resnet50 --imagenet DIR --limit 1000
        ... --attack autoattack (needs: pip install pyautoattack)    ... --attack pgd --eps 1/255 --step-size 0.25/255
Gives:  top1_acc/ATTACK/low (eps = 0.5/255) and /high (4/255) for PGD-40, FGSM, PGD-tuned and, on request, AutoAttack;
        other settings go by names of their own. The published step is four times the low eps, which makes a weak
        attack: PGD-tuned is the well-tuned one. Published PGD-40 of the 48 networks: low 12 to 66, high 0 to 39;
        torchvision's ResNet-50 (tv_resnet50) has 18.31 and 0.00.
"""

import math
import warnings

from imagenet_biases.attacks import auto_attack, fgsm, pgd, tuned_pgd
from imagenet_biases.errors import UserError
from imagenet_biases.evaluate import CLEAN, Benchmark, Pass
from imagenet_biases.images.sets import image_set
from imagenet_biases.run import run
from imagenet_biases.scores import accuracies, correct, top

LEVELS = {"low": 0.5 / 255, "high": 4 / 255}
STEPS, STEP_SIZE = 40, 2 / 255  # published
ATTACKS = ("pgd", "fgsm", "tuned", "autoattack")


def options(parser):
    """Add the attack's own flags."""
    group = parser.add_argument_group("attack")
    group.add_argument("--attack", nargs="+", choices=ATTACKS, default=ATTACKS[:3], help="default: all but autoattack")
    group.add_argument("--eps", type=amount, help="largest change, e.g. 4/255 (default: both published levels)")
    group.add_argument("--steps", type=int, default=STEPS, help=f"of pgd and tuned (default: {STEPS})")
    group.add_argument("--step-size", type=amount, default=STEP_SIZE, help="of pgd (default: 2/255)")


def amount(text):
    """Return a change of pixel values in (0, 1] from text such as 4/255 or 0.0157."""
    number, _, divisor = text.partition("/")
    try:
        value = float(number) / float(divisor or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value <= 1:
        raise UserError(f"--eps and --step-size: '{text}' is not a number from 0 to 1 such as 4/255 or 0.0157")
    return value


def conditions(args):
    """Yield the attacks that the command line asks for; only the published settings get the published names."""
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: give 1 or more")
    for level, eps in LEVELS.items() if args.eps is None else [(level_of(args.eps), args.eps)]:
        published = math.isclose(args.step_size, STEP_SIZE) and args.steps == STEPS and level in LEVELS
        steps = "" if args.steps == STEPS else f"-steps-{args.steps}"
        if "pgd" in args.attack:
            step = "" if published else f"-step-{255 * args.step_size:g}"
            if args.step_size > eps and not published:
                text = f"--step-size {255 * args.step_size:g}/255 is above eps, {255 * eps:g}/255: a weak attack"
                warnings.warn(text, stacklevel=2)
            yield pgd(f"PGD-{args.steps}/{level}{step}", eps, args.steps, args.step_size)
        if "fgsm" in args.attack:
            yield fgsm(f"FGSM/{level}", eps)
        if "tuned" in args.attack:
            yield tuned_pgd(f"PGD-tuned/{level}{steps}", eps, args.steps)
        if "autoattack" in args.attack:
            yield auto_attack(f"AutoAttack/{level}", eps)


def level_of(eps):
    """Return 'low' or 'high' for the published levels, else the number in 255ths."""
    return next((level for level, value in LEVELS.items() if math.isclose(eps, value)), f"eps-{255 * eps:g}")


def passes(args):
    """Show the validation images as they are and as each attack changes them."""
    return [Pass(image_set("imagenet", args), (CLEAN, *conditions(args)))]


def report(responses):
    """Yield the clean accuracy and the accuracy under each attack; an attack that raises it is no attack."""
    clean = responses["imagenet", CLEAN.name]
    yield from accuracies(clean, "imagenet")
    for (_, name), attacked in responses.items():
        if attacked is clean:
            continue
        if correct(attacked).sum() > correct(clean).sum():
            warnings.warn(
                f"accuracy under {name} is above the clean one: this network's gradients mislead", stacklevel=2
            )
        yield f"top1_acc/{name}", top(attacked)


BENCHMARK = Benchmark(
    "imagenet_adv",
    passes,
    report,
    options=options,
    headline=(
        "top1_acc/imagenet",
        *(f"top1_acc/{a}/{level}" for a in ("PGD-40", "FGSM", "PGD-tuned") for level in LEVELS),
    ),
)

if __name__ == "__main__":
    run(BENCHMARK, __doc__)
