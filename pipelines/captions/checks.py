"""What a layer's prompt must and must not say, and small repairs of what a model answers.

The conventions: one paragraph a layer. The foreground's is about the subject only and does not
talk of the plain backdrop that the captioner saw it on; the background's never names the subject;
the blended one tells the whole scene. None talks of images, watermarks or the captioner itself.
The index prefix ("0, ") belongs to the model's code and is never stored.
"""

from __future__ import annotations

import re

from layerflow.clip import BACKGROUND, FOREGROUND
from layerflow.locations import one_line

MAX_TOKENS = 200
CHARS_PER_TOKEN = 4  # of English text in T5's vocabulary it is 4.2 to 4.7: an upper bound of tokens

_BACKDROP = re.compile(
    r"\b(?:black|white|gr[ae]y|dark|pitch-black|plain|blank|solid|empty|neutral|transparent"
    r"|uniform|featureless)(?:[ -]colou?red)?[ ,]+(?:\w+[ ,]+)?(?:back(?:ground|drop)|sky|void)\b"
    r"|\b(?:cut[ -]?out|transparen(?:t|cy) (?:layer|background)|checkerboard)\b",
    re.IGNORECASE,
)
_META = re.compile(
    r"\bwater ?marks?\b|\bwatermarked\b|\bbilibili\b|\bshutterstock\b|\bgetty\b|\bsubtitles?\b"
    r"|\bimages?\b|\bscreenshots?\b|\bstock (?:footage|video)\b"
    r"|\b(?:this|these|the|each|first|last|next) (?:picture|frame|photo|video|clip|footage)s?\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'| a)m sorry|i can(?:no|')t|i am unable|i'm unable|as an ai|language model)\b",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^(?:\*\*)?(?:foreground|background|blended|caption|prompt|subject|answer|scene)"
    r"(?: (?:prompt|caption|layer))?(?:\*\*)?\s*:(?:\*\*)?\s*",
    re.IGNORECASE,
)
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox",
}  # fmt: skip
_PEOPLE = frozenset(
    {"person", "man", "woman", "boy", "girl", "child", "kid", "lady", "guy", "human", "baby"}
)
_SMALL_WORDS = frozenset({"a", "an", "the", "one", "two", "some", "single", "of", "its", "his"})


def clean_prompt(answer: str) -> str:
    """One line without quotes around it, labels, list marks or an index prefix."""
    text = " ".join(one_line(answer).split())
    text = _LABEL.sub("", text)
    text = re.sub(r"^[012], +", "", text)
    if len(text) > 1 and text[0] in "\"'`" and text[-1] == text[0]:
        text = text[1:-1]
    return text.strip()


def subject_nouns(name: str) -> frozenset[str]:
    """The head nouns, in the singular, of what a captioner calls the subject.

    ``"A brown dog and two riders on horses"`` -> dog, rider. Adjectives do not count: a red car
    does not forbid a red wall.
    """
    nouns = set()
    for part in re.split(r",|;|/|\.|\band\b|\bor\b", clean_prompt(name).lower()):
        head = re.split(r"\b(?:on|in|at|of|with|wearing|holding|riding)\b", part)[0]
        words = [w for w in re.findall(r"[a-z][a-z'-]+", head) if w not in _SMALL_WORDS]
        if words:
            nouns.add(_singular(words[-1]))
    return frozenset(nouns)


def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, repaired in (("ies", "y"), ("ves", "f"), ("sses", "ss"), ("shes", "sh")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + repaired
    for ending in ("ches", "xes"):
        if word.endswith(ending):
            return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def find_problems(
    layer: str, text: str, subject: frozenset[str], max_tokens: int = MAX_TOKENS
) -> list[str]:
    """What is wrong with a cleaned prompt of ``layer``; each a sentence that can be sent back.

    subject: of ``subject_nouns``.
    """
    if not text:
        return ["it is empty"]
    problems = []
    if len(text) > max_tokens * CHARS_PER_TOKEN:
        words = max_tokens * CHARS_PER_TOKEN // 7
        problems.append(f"it is too long: write at most {words} words")
    if found := _REFUSAL.search(text):
        problems.append(f"it speaks of you ({found[0]!r}) and not of what is shown")
    if found := _META.search(text):
        problems.append(f"it speaks of {found[0]!r}: describe what is shown as if it were there")
    if layer == FOREGROUND and (found := _BACKDROP.search(text)):
        problems.append(f"it speaks of what is behind the subject ({found[0]!r})")
    if layer == BACKGROUND:
        names = subject | _PEOPLE if subject & _PEOPLE else subject
        said = set(re.findall(r"[a-z][a-z']+", text.lower()))
        named = sorted(word for word in said if _singular(word) in names)
        problems += [f"it names the subject ({word!r}), which is not there" for word in named]
    return problems
