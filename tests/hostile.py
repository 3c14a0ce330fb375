"""Generators of bad input, each a function of a random.Random: damaged bytes, odd JSON, odd words.

How much is generated: HOSTILE_CASES times the suite's number of cases (default 1), from the seed HOSTILE_SEED (default
0). A failure names the seed and the case:
HOSTILE_SEED=7 HOSTILE_CASES=20 python -m pytest tests/scripts/test_hostile_files.py
"""

import contextlib
import copy
import json
import os
import random
import signal
import string

SEED = int(os.environ.get("HOSTILE_SEED", 0))
TIMES = float(os.environ.get("HOSTILE_CASES", 1))
LIMIT = 20  # seconds: longer is a hang

ODD_WORDS = [
    "", " ", ",", "-", "--", "=", "0", "-1", "1e3", "nan", "inf", "1" + "0" * 19, "9" * 5000, "0x10", "1_0", "٣", "é",
    "\ud800", "a\nb", "\x1b[31m", "../..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "~", "*", "x" * 300,
    "None", "True", "[]", "{}", "imagenet,imagenet", "n01440764", "1000", "resnet50", "os:getcwd", ":", ".py:",
    "resnet50.a1_in1k,,", "@", "@/dev/null", ".", "..", "wandb", ".hidden",
]  # fmt: skip
ODD_VALUES = [
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 10**400, 1e300, float("nan"), float("inf"), "", "x", "\ud800", "1",
    "../../x", "\x1b[31m", [], {}, [[]], [None], {"": None}, {"a": {"b": []}},
]  # fmt: skip


def cases(number):
    """Yield (name of the case, its own random.Random)."""
    for case in range(max(1, int(number * TIMES))):
        yield f"HOSTILE_SEED={SEED} case {case}", random.Random(f"{SEED}-{case}")


@contextlib.contextmanager
def limited(seconds=LIMIT):
    """Raise TimeoutError where the block takes longer."""

    def late(*_):
        raise TimeoutError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damaged(data, dice):
    """Return bytes with one to four damages: flipped bits, holes, cuts, doubled or inserted parts."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        where = dice.randrange(len(data) + 1)
        if dice.random() < 0.5:  # headers are where readers go wrong
            where = min(len(data), int(dice.expovariate(1 / 60)))
        length = dice.choice([1, 1, 2, 4, 40, 4000])
        kind = dice.randrange(7)
        if kind == 0 and where < len(data):
            data[where] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[where : where + length]
        elif kind == 2:
            del data[where:]
        elif kind == 3:
            data[where:where] = data[where : where + length]
        elif kind == 4:
            data[where:where] = dice.randbytes(length)
        elif kind == 5:
            stop = min(len(data), where + length)
            data[where:stop] = bytes([dice.choice([0, 0x7F, 0xFF])]) * (stop - where)
        elif where < len(data):
            data[where] = dice.randrange(256)
    return bytes(data)


def odd_value(dice):
    """Return something that JSON can say (or Python's json at least)."""
    if dice.random() < 0.1:
        deep = []
        for _ in range(dice.choice([10, 100, 500])):
            deep = [deep] if dice.random() < 0.5 else {"a": deep}
        return deep
    return copy.deepcopy(dice.choice(ODD_VALUES))


def odd_json(value, dice):
    """Return the JSON text of a value with one to three places changed: another value, a key less, a key more."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice([1, 1, 2, 3])):
        place, key = value, None
        while isinstance(place, dict | list) and place:  # a random path down, that ends somewhere
            holder, key = place, dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
            place = holder[key]
            if dice.random() < 0.3:
                break
        if key is None or dice.random() < 0.03:
            value = odd_value(dice)
            continue
        kind = dice.random()
        if kind < 0.25:
            del holder[key]
        elif kind < 0.35 and isinstance(holder, dict):
            holder[dice.choice(ODD_WORDS)] = odd_value(dice)
        else:
            holder[key] = odd_value(dice)
    text = json.dumps(value)
    if dice.random() < 0.03:
        return "[" * 100_000
    return text


def write_odd_json(path, value, dice):
    """Write odd or damaged JSON."""
    data = odd_json(value, dice).encode()
    path.write_bytes(damaged(data, dice) if dice.random() < 0.2 else data)


def odd_text(text, dice):
    """Return bytes of a text with lines doubled, swapped, dropped, words replaced, or written in another encoding."""
    lines = text.splitlines()
    for _ in range(dice.choice([1, 2, 3])):
        where = dice.randrange(len(lines)) if lines else 0
        kind = dice.randrange(6)
        if not lines or kind == 0:
            lines.insert(where, dice.choice(ODD_WORDS))
        elif kind == 1:
            del lines[where]
        elif kind == 2:
            lines.insert(where, dice.choice(lines))
        elif kind == 3:
            words = lines[where].split(",")
            words[dice.randrange(len(words))] = dice.choice(ODD_WORDS)
            lines[where] = ",".join(words)
        elif kind == 4:
            lines[where] += "," * dice.choice([1, 2, 100])
        else:
            lines[where] = lines[where].replace(dice.choice(string.printable), dice.choice(ODD_WORDS))
    text = "\n".join(lines)
    encoding = dice.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"])
    data = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    return damaged(data, dice) if data and dice.random() < 0.2 else data
