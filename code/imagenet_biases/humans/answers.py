"""From an answer in words to one of the 16 categories, by rules that can be read.

A decision is the number of a category (0 to 15, in alphabetical order), or one of REFUSED, UNPARSED, GENERIC.
The published rules are those of Gavrikov et al., "Can We Talk Models Into Seeing the World Differently?", ICLR 2025,
arXiv:2403.09193, as their released code states them.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from imagenet_biases.study import CATEGORIES_16

NAMES = tuple(CATEGORIES_16)
LETTERS = "ABCDEFGHIJKLMNOP"
REFUSED, UNPARSED, GENERIC = 16, 17, 18
DECISIONS = (*NAMES, "refused", "unparsed", "generic")

SYNONYMS = {
    "airplane": "airplanes? aeroplanes? planes? airliners?",
    "bear": "bears?",
    "bicycle": "bicycles? bikes?",
    "bird": "birds?",
    "boat": "boats? sailboats? rowboats? motorboats?",
    "bottle": "bottles?",
    "car": "cars? automobiles?",
    "cat": "cats? kittens?",
    "chair": "chairs? armchairs?",
    "clock": "clocks?",
    "dog": "dogs? pupp(?:y|ies)",
    "elephant": "elephants?",
    "keyboard": "keyboards?",
    "knife": "knife knives",
    "oven": "ovens?",
    "truck": "trucks? lorry lorries",
}
"""Words that name a category. Wider words (ship, stove, vehicle) are left out: they may mean something else."""

_NAMED = re.compile(
    r"(?<![\w-])(?:(?P<not>(?:not|no|nor|without|isn't|aren't|never)(?: (?:an?|the|any))?) )?"
    + "(?:"
    + "|".join(f"(?P<{name}>{'|'.join(words.split())})" for name, words in SYNONYMS.items())
    + r")(?![\w-])",
    re.I,
)
_ELSE = re.compile(
    r"\b(?:hot[ -]dogs?|(?:train|tram|railway|railroad|cable) cars?|bottle ?caps?|cat ?walks?|bird'?s[ -]eye)\b", re.I
)
_REFUSAL = re.compile(
    r"\bsorry\b|\bapologi[sz]e|\bnone of (?:the|these|those|them)\b|\bas an ai\b|"
    r"\b(?:can(?:not|'t| not)|could(?: not|n't)|unable to|not able to|(?:im|not )possible to|difficult to|won't|"
    r"refuse to)(?: \w+){0,2} (?:assist|help|provide|choose|select|pick|identify|determine|answer|process|comply|"
    r"categori[sz]e|discern|tell|say|see|view|recogni[sz]e|describe|decide)\b|"
    r"\b(?:does|do|did)(?: not|n't)(?: \w+)? (?:represent|match|correspond|show|depict|contain|fit|resemble) "
    r"(?:any|one|the options|a clear)|\bno (?:suitable |correct |clear |matching )?(?:option|answer)\b|"
    r"\bnot (?:one of|among|in|listed (?:in|among)) the (?:options|choices|list)",
    re.I,
)
_ANSWER_WORD = (  # "answer", "option", "letter" in the languages that models fall into
    r"(?:answer|option|choice|letter|antwort|buchstabe|r[ée]ponse|lettre|respuesta|opci[óo]n|letra|resposta|op[çc][ãa]o|"
    r"risposta|opzione|ответ|вариант|답|정답|答案|选项|選項|选择|答え|選択肢)"
)
_LINK = (
    r"(?: (?:correcta?|correcte|corretta|correta))?"
    r"(?:\s*(?:(?:is|was|would be|ist|est|es|è|é)\b|[是为為は은는]))?\s*[:=\-–—]?\s*"
)
_EXPLICIT = re.compile(
    rf"{_ANSWER_WORD}{_LINK}(?:{_ANSWER_WORD}\s*)?[(\[]?(?P<stated>[A-P])(?![A-Za-z0-9'])"  # the answer is (H)
    r"|[(\[](?P<bracketed>[A-P])[)\]]"  # (H)
    r"|(?:^|(?<=[\s,;]))(?P<marked>[A-P])(?=\s*[.):,;]|\s*-\s|\s+(?:or|and) [A-P]\b)"  # H. H) H: H,
    r"|(?:\b(?:or|and)|[,/&])\s*(?P<further>[B-HJ-P])(?![A-Za-z0-9'])"  # H or K
    r"|^(?P<first>[B-HJ-P])(?=\s)",  # H cat; a first A or I is a word of English
    re.I | re.M,
)
_THOUGHT = r"(?:</think(?:ing)?>|◁/think▷|\[/THINK\]|<\|channel\|>final<\|message\|>)"
_THINKING = re.compile(r"\s*(?:<think(?:ing)?>|◁think▷|\[THINK\]|<\|channel\|>analysis)", re.I)
_WRAPPED = re.compile(
    r"\\boxed\s*\{(?:\s*\\\w+\s*\{)*(?P<boxed>[^{}]*)|<answer>(?P<tagged>.*?)(?:</answer>|$)|"
    r"<\|begin_of_box\|>(?P<in_box>.*?)(?:<\|end_of_box\|>|$)",
    re.I | re.S,
)
_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?(?:s|eos|bos|pad|unk|end_of_utterance|start_of_turn|end_of_turn)>", re.I)
_ROLE = re.compile(r"(?:^|\n)\s*(?:assistant|model|gpt|chatgpt)\s*(?::|\n)|\bASSISTANT:", re.I)
_VERDICT = re.compile(r"(?:answer|antwort|r[ée]ponse|respuesta|resposta|risposta|ответ|답|정답|答案|答え)", re.I)
_FURTHER = re.compile(r"[)\]]?\s*(?:or|and|[/&,])\s*(?:option\s*)?[(\[]?[A-P](?![A-Za-z0-9'])", re.I)
_QUOTES = str.maketrans(dict.fromkeys("*_`\"'$«»“”„‘‚「」『』", " ") | {"。": ".", "、": ","})
_ALONE = re.compile(r"[(\[{<]?\s*([A-Pa-p])\s*[)\]}>.:,;!?]*")


@functools.lru_cache(maxsize=100_000)
def decide(answer: str, options: tuple[str, ...] = NAMES) -> int:
    """Return the decision that an answer to the question with lettered options states.

    `options`: the categories in the order in which they were lettered A to P. A letter, a category's name or a sentence
    that names exactly one category counts, whatever its case and punctuation; letter and name must agree. Of longer
    answers the final one counts: what follows the thoughts and stands in a box, what is called the answer, or the
    letter at the beginning, if the explanation names its category, too. A refusal is REFUSED; anything else, a recited
    list or two categories, is UNPARSED.
    """
    text = _plain(final_answer(answer))
    if alone := _ALONE.fullmatch(text):
        return NAMES.index(options[LETTERS.index(alone[1].upper())])
    letters = list(filter(None, map(_letter, _EXPLICIT.finditer(text))))
    stated = _stated(text, options)
    named = {options[LETTERS.index(letter)] for letter in letters} | set(_names(text))
    if _REFUSAL.search(text) and not (letters and _EXPLICIT.match(text)):
        return REFUSED
    if stated and len(named) > 1:
        return NAMES.index(stated)
    return NAMES.index(named.pop()) if len(named) == 1 else UNPARSED


def final_answer(text: str) -> str:
    """Return an answer without thoughts, chat template and box; '' where it was cut off among the thoughts."""
    parts = re.split(_THOUGHT, text, flags=re.I)
    text = parts[-1]
    if len(parts) == 1 and _THINKING.match(text):
        return ""
    while wrapped := [match for match in _WRAPPED.finditer(text) if match[match.lastgroup or 0].strip()]:
        text = wrapped[-1][wrapped[-1].lastgroup or 0]
    return _ROLE.split(_TOKEN.sub(" ", text))[-1]


def unfinished(answer: str) -> bool:
    """Whether an answer ends among its thoughts."""
    return bool(_THINKING.match(answer)) and not final_answer(answer).strip()


def is_letter(answer: str) -> bool:
    """Whether an answer is a letter and nothing else."""
    return bool(_ALONE.fullmatch(_plain(final_answer(answer))))


def states_letter(answer: str) -> bool:
    """Whether an answer states a letter of an option."""
    text = _plain(final_answer(answer))
    return is_letter(answer) or any(map(_letter, _EXPLICIT.finditer(text)))


def _stated(text: str, options: Sequence[str]) -> str | None:
    """Return the option of the letter that is called the answer, else of the one letter at the head; None where an
    alternative follows, the next category named is another, or the explanation does not name it."""
    match = _final_letter(text)
    if match is None:
        return None
    option = options[LETTERS.index(_letter(match) or "")]
    rest, named = text[match.end() :], set(_names(text))
    following = next(_names(rest[:20]), option)
    agrees = following == option and (option in named or not named)
    return option if agrees and not _FURTHER.match(rest) else None


def _final_letter(text: str) -> re.Match | None:
    """Return the match of the last letter that is called the answer, else of the one letter at the head."""
    matches = [match for match in _EXPLICIT.finditer(text) if _letter(match)]
    verdicts = [match for match in matches if match.lastgroup == "stated" and _VERDICT.match(match[0])]
    if verdicts:
        return verdicts[-1]
    return matches[0] if matches and matches[0].start() == 0 and _one_option(text, matches) else None


def _one_option(text: str, matches: Sequence[re.Match]) -> bool:
    """Whether a text states one letter only, or one in its first line, further ones within sentences below."""
    letters = set(map(_letter, matches))
    lines = text.splitlines()
    heads = 0
    for line in lines:
        head = _EXPLICIT.match(line)
        heads += head is not None and head.lastgroup in ("bracketed", "marked", "first")
    return len(letters) == 1 or (
        len(lines) > 1 and heads == 1 and len(set(map(_letter, _EXPLICIT.finditer(lines[0])))) == 1
    )


@functools.lru_cache(maxsize=100_000)
def decide_caption(caption: str) -> int:
    """Return the decision of a free description: the one category that it names; GENERIC if it names none.

    UNPARSED where it names several, REFUSED for a refusal that names none.
    """
    text = _plain(final_answer(caption))
    named = set(_names(text))
    if not named:
        return REFUSED if _REFUSAL.search(text) else GENERIC
    return NAMES.index(named.pop()) if len(named) == 1 else UNPARSED


def decide_as_published(answer: str, options: Sequence[str] = NAMES) -> int:
    """Return the decision by the published rules: a category, or UNPARSED.

    A final "." is taken off, what follows "The answer is " or "Answer: " counts. A bare name is taken as it stands;
    otherwise the first character is the letter, if it is alone or its second is one of . ) , : blank or the full-width
    colon. So "A cat" is an airplane, "I see" a chair, and "Cat" no category.
    """
    text = answer.strip().removesuffix(".")
    for lead in ("The answer is ", "Answer: "):
        text = text.partition(lead)[2] or text
    if text.lower() in NAMES:
        return NAMES.index(text) if text in NAMES else UNPARSED
    if text[:1] in tuple(LETTERS) and (len(text) == 1 or text[1] in ".),: ："):
        return NAMES.index(options[LETTERS.index(text[0])])
    return UNPARSED


PARSERS = {"own": decide, "published": decide_as_published}


def _plain(text: str) -> str:
    """Return a text with full-width signs made plain, without marks of emphasis and quotation, blanks single."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    text = re.sub(r"(?<=\w)'(?=\w)", "\0", text).translate(_QUOTES).replace("\0", "'")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(filter(None, lines))


def _letter(match: re.Match) -> str | None:
    """Return the letter that an explicit match states, or None.

    A small one is a letter in brackets, or after a word for "answer" where nothing but punctuation follows; a stated A
    or I that a word follows is a word of English itself ("the answer is A cat").
    """
    letter, after = match[match.lastgroup or 0], match.string[match.end() :]
    if match.lastgroup == "stated" and (letter.islower() or letter in "AI") and re.match(r"\s+[a-z]", after):
        return None
    if letter.islower() and match.lastgroup not in ("bracketed", "stated"):
        return None
    return letter.upper()


def _names(text: str) -> Iterator[str]:
    """Yield the categories that a text names and does not deny."""
    for match in _NAMED.finditer(_ELSE.sub(" ", text)):
        if not match["not"]:
            yield str(match.lastgroup)
