"""Answers in words: what they decide, by our rules and by the published ones."""

import random

import pytest

from common import ROOT
from imagenet_biases.humans.answers import (
    DECISIONS,
    GENERIC,
    LETTERS,
    NAMES,
    REFUSED,
    UNPARSED,
    decide,
    decide_as_published,
    decide_caption,
    unfinished,
)

TABLE = [line.split("\t") for line in (ROOT / "tests" / "answers.tsv").read_text("utf-8").split("\n")[1:-1]]


def test_every_answer_of_the_table_is_read_as_a_person_reads_it():
    wrong = [
        (expected, DECISIONS[found], answer)
        for expected, answer in TABLE
        if DECISIONS[found := decide(answer.replace("\\n", "\n"))] != expected
    ]
    assert not wrong
    assert len(TABLE) > 400 and {expected for expected, _ in TABLE} == set(DECISIONS) - {"generic"}


def test_letters_follow_the_order_of_the_options_and_names_do_not():
    options = tuple(random.Random(1).sample(NAMES, 16))
    for letter, name in zip(LETTERS, options, strict=True):
        expected = NAMES.index(name)
        for answer in (letter, f"{letter}.", f"({letter}) {name}", f"The answer is {letter}.", name.title()):
            assert decide(answer, options) == expected
        assert decide_as_published(f"{letter}. {name}", options) == expected
        assert decide_as_published(name, options) == expected


@pytest.mark.parametrize(
    "answer, own, published",
    [
        ("A cat", "cat", "airplane"),  # the article is taken for a letter
        ("I see a dog", "dog", "chair"),
        ("Cat", "cat", "unparsed"),
        ("cat.", "cat", "cat"),
        ("The answer is H.", "cat", "cat"),
        ("H：", "cat", "cat"),
        ("(H)", "cat", "unparsed"),
        ("A: airplane. B: bear. C: bicycle.", "unparsed", "airplane"),
        ("I'm sorry, I cannot assist with this request.", "refused", "unparsed"),
    ],
)
def test_the_two_rules_differ_where_the_published_ones_slip(answer, own, published):
    assert (DECISIONS[decide(answer)], DECISIONS[decide_as_published(answer)]) == (own, published)


def test_a_caption_is_decided_by_the_one_category_that_it_names():
    assert decide_caption("A watercolor painting of two cats on a table") == NAMES.index("cat")
    assert decide_caption("An abstract painting of a face") == GENERIC
    assert decide_caption("A cat made of bottles") == UNPARSED
    assert decide_caption("I'm sorry, I cannot assist with this request.") == REFUSED
    assert decide_caption("A bird's-eye view of a town") == GENERIC


def test_a_caption_is_read_after_the_thoughts():
    assert decide_caption("<think>A dog or an elephant?</think>A cat.<|im_end|>") == NAMES.index("cat")
    assert decide_caption("<think>A dog or an") == GENERIC


def test_answers_that_end_among_thoughts_are_unfinished():
    assert unfinished("<think>It may be H, or") and unfinished("<think>Hm.</think>\n")
    assert not unfinished("H") and not unfinished("<think>Hm.</think>H") and not unfinished("Hm.</think>H")
