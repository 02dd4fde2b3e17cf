"""What a sentence says of sides and colours: which ones survive a mirror, and which forbid another hue.

English, as people write it in RefCOCO: lower case, few full sentences, many typing errors. Where a word may mean
something else than a side ("right behind the man", "the last piece left"), the answer is not to mirror.
"""

import re

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_SIDE = re.compile(
    r"(far|top|bottom|upper|lower|front|back|middle|center)?(left|right)(most|hand|handed|side|wards?|y|ish|er|est)?"
)
_MISTYPED_SIDE = re.compile(r"l[eft]{2,3}|r[ight]{3,4}|l|r|lt|rt|rgt|rit|rite|lhs|rhs")
_SIDE_OF_A_CAR = re.compile(r"(?:driver|passenger)(?:s|'s)?(?:side)?")
"""The mirrored car is one of another country."""
_NO_SIDE = re.compile(
    r"bright|brighter|brightest|brightly|upright|alright|outright|wright|leftovers?|cleft|copyright|copyrighted|fright|"
    r"frightened|frightening"
)
_BEFORE_A_SIDE = re.compile(
    r"on|to|the|far|upper|lower|top|bottom|from|at|towards?|in|second|third|fourth|2nd|3rd|4th|extreme|front|back|"
    r"middle|her|his|its|their|your|our|my|near|screen"
)
_AFTER_AN_ADVERB = re.compile(
    r"next|behind|beside|above|below|under|underneath|before|after|near|by|at|against|beneath|between|there|here|now|"
    r"over|up|in|on|off|out|alone|open|angle|the|an?|his|her|with|to"
)
_REMAINING = re.compile(r"last|only|remaining|is|are|all|just|that|who|has|have|had")
_READ_IN_THE_IMAGE = re.compile(
    r"says?|said|saying|reads|written|writing|letters?|words?|numbers?|numbered|text|logo|clock|o'clock|oclock|"
    r"clockwise|counterclockwise|anticlockwise|east|west|eastern|western|spelled|spelling"
)
_ORDINAL = re.compile(r"\d+(st|nd|rd|th)")

_LOWER = {
    "top": "bottom",
    "topmost": "bottommost",
    "above": "below",
    "upper": "lower",
    "uppermost": "lowermost",
    "highest": "lowest",
}
_UPSIDE_DOWN = _LOWER | {low: high for high, low in _LOWER.items()}
_NO_OPPOSITE = re.compile(
    r"over|under|beneath|underneath|up|down|upside|higher|upwards?|downwards?|atop|tops|bottoms|overhead|standing|lying"
)

_COLOUR = re.compile(
    r"(?:red|orange|yellow|green|cyan|blue?|purp(?:le)?|pink|brown|violet|teal|magenta|maroon|turquoise|tan|beige|gold|"
    r"golden|navy|khaki|lavender|lilac|burgundy|crimson|scarlet|olive|lime|aqua|indigo|peach|salmon|rust|copper|bronze|"
    r"blonde?|brunette|redhead|ginger|rose)(?:d?ish|lish|s|y|d?er|d?est)?"
)


def mirrored(sentence: str) -> str | None:
    """What means the same object in the image flipped left to right.

    Returns:
        The sentence with left and right exchanged (leftmost, left-hand, lefty, top-left and the like too), with the
        case of its letters kept; None where that is not certain: a doubtful left or right, a mistyped one, or
        something that is read in the image (numbers, letters, clocks).
    """
    words = list(_WORD.finditer(sentence))
    if '"' in sentence or any(_is_read(word.group().lower()) for word in words):
        return None
    swapped, end = [], 0
    for place, word in enumerate(words):
        text = word.group().lower()
        side = _SIDE.fullmatch(text)
        if side is None:
            if _may_be_a_side(text):
                return None
            continue
        if _is_doubtful(sentence, words, place):
            return None
        start = word.start() + side.start(2)
        other = "right" if side.group(2) == "left" else "left"
        length = len(side.group(2))
        swapped += [sentence[end:start], _cased(other, sentence[start : start + length])]
        end = start + length
    return "".join([*swapped, sentence[end:]])


def upside_down(sentence: str) -> str | None:
    """What means the same object in the image flipped top to bottom, for images without gravity (the scenes).

    Returns:
        The sentence with top and bottom, above and below and the like exchanged; None where a word has no opposite
        ("over", "standing") or means no direction ("on top of"), or something is read in the image.
    """
    found = [word.group().lower() for word in _WORD.finditer(sentence)]
    if '"' in sentence or "top of" in " ".join(found):
        return None
    if any(_is_read(text) or _NO_OPPOSITE.fullmatch(text) for text in found):
        return None
    return _WORD.sub(lambda word: _cased(_UPSIDE_DOWN.get(word.group().lower(), word.group()), word.group()), sentence)


def names_colour(sentence: str) -> bool:
    """Whether a sentence speaks of a hue; black, white and grey keep theirs whatever is done to it."""
    return any(_COLOUR.fullmatch(word.group().lower()) for word in _WORD.finditer(sentence))


def _is_read(text: str) -> bool:
    """Whether a word speaks of what is written in the image; "2nd" counts objects, "12" is more likely a shirt's."""
    is_number = any(letter.isdigit() for letter in text) and not _ORDINAL.fullmatch(text)
    return is_number or _READ_IN_THE_IMAGE.fullmatch(text) is not None


def _may_be_a_side(text: str) -> bool:
    """Whether a word that is no known form of left or right may be a mistyped one, or name a side in another way."""
    has_side = ("left" in text or "right" in text) and not _NO_SIDE.fullmatch(text)
    return has_side or any(form.fullmatch(text) for form in (_MISTYPED_SIDE, _SIDE_OF_A_CAR))


def _is_doubtful(sentence: str, words: list[re.Match[str]], place: int) -> bool:
    """Whether a bare "left" or "right" may be a verb or an adverb: nothing before it says that it is a side."""
    texts = [word.group().lower() for word in words]
    if texts[place] not in ("left", "right"):
        return False
    after = texts[place + 1 : place + 3]
    if after == ["side", "up"]:
        return True
    if place and _BEFORE_A_SIDE.fullmatch(texts[place - 1]):
        return False
    if not after:
        return any(_REMAINING.fullmatch(text) for text in texts[:place])
    is_apart = not sentence[words[place].end() : words[place + 1].start()].isspace()
    return not is_apart and _AFTER_AN_ADVERB.fullmatch(after[0]) is not None


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word
