"""A flipped sentence means the flipped object; doubtful sentences are not flipped."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.referring.words import mirrored, names_colour, upside_down
from pipeline.scenes.expressions import candidates
from pipeline.scenes.render import COLOURS
from tests.unit.test_expressions import NOUN, interpret, named, random_objects


def meaning(sentence, objects):
    """The grammar of the scenes, which counts from the left and the top only, with the other two ends."""
    ordinal = re.fullmatch(rf"the (second|third|fourth) ({NOUN}) from the (right|bottom)", sentence)
    if ordinal is None:
        return interpret(sentence, objects)
    word, noun, end = ordinal.groups()
    order = sorted(named(objects, noun), key=lambda i: -(objects[i].x if end == "right" else objects[i].y))
    return {order[("second", "third", "fourth").index(word) + 1]}


@pytest.mark.parametrize("change", ["mirrored", "upside_down"])
def test_every_sentence_of_the_scenes(change):
    rng = np.random.default_rng(7)
    kinds, changed = Counter(), Counter()
    for _ in range(150):
        objects = random_objects(rng)
        if change == "mirrored":
            flip, flipped = mirrored, [replace(o, x=1 - o.x) for o in objects]
        else:
            flip, flipped = upside_down, [replace(o, y=1 - o.y) for o in objects]
        for candidate in candidates(objects):
            sentence = flip(candidate.sentence)
            assert sentence is not None, candidate
            assert meaning(sentence, flipped) == {candidate.target}, (candidate, sentence, objects)
            assert flip(sentence) == candidate.sentence
            kinds[candidate.kind] += 1
            changed[candidate.kind] += sentence != candidate.sentence
    assert set(kinds) == {"name", "extreme", "size", "half", "ordinal", "side", "nearest"}
    assert not any(changed[kind] for kind in ("name", "size", "nearest"))
    assert all(changed[kind] > 0 for kind in ("extreme", "half", "ordinal", "side"))


@pytest.mark.parametrize(
    ("sentence", "flipped"),
    [
        ("guy on left", "guy on right"),
        ("Left guy", "Right guy"),
        ("LEFT", "RIGHT"),
        ("person in top left corner", "person in top right corner"),
        ("left-most zebra, not the rightmost", "right-most zebra, not the leftmost"),
        ("lefthand side, left-hand side", "righthand side, right-hand side"),
        ("right-handed batter", "left-handed batter"),
        ("lefty", "righty"),
        ("man on right next to the car", "man on left next to the car"),
        ("her left hand", "her right hand"),
        ("bottomleft sheep", "bottomright sheep"),
        ("2nd from right", "2nd from left"),
        ("bright shirt", "bright shirt"),
        ("leftover pizza", "leftover pizza"),
        ("little bottle on the sleeve", "little bottle on the sleeve"),
        ("the man that stands on the left", "the man that stands on the right"),
        ("", ""),
    ],
)
def test_left_and_right_of_people(sentence, flipped):
    assert mirrored(sentence) == flipped
    assert mirrored(flipped) == sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "the cat right next to the dog",  # an adverb, or a side
        "guy right behind the girl",
        "right behind the man in front",
        "man who left the table",
        "the only slice left",
        "right side up umbrella",
        "lft guy",
        "rigth one",
        "leftt one",
        "man l",
        "R guy in blue",
        "rgt man",
        "far rit",
        "the guy that just left",
        "the woman who left",
        "the bus that had left",
        "driver side of car",
        "the passenger's door",
        "player number 12",
        "bus that says school",
        'the "stop" sign',
        "jersey 7",
        "clock tower",
    ],
)
def test_doubtful_sentences_stay(sentence):
    assert mirrored(sentence) is None


@pytest.mark.parametrize(
    ("sentence", "flipped"),
    [
        ("top one", "bottom one"),
        ("Upper left", "Lower left"),
        ("the ring above the star", "the ring below the star"),
        ("the red disk", "the red disk"),
        ("cat on top of the car", None),
        ("man standing", None),
        ("bowl under table", None),
    ],
)
def test_top_and_bottom(sentence, flipped):
    assert upside_down(sentence) == flipped


def test_colours():
    assert all(names_colour(f"the {colour} star") for colour in COLOURS)
    for text in ("reddish hat", "Blue-shirted man", "bluish", "purplish one", "blonde", "tan couch", "greens"):
        assert names_colour(text), text
    for text in ("white shirt", "black cat", "the bored man", "a standing goldfish", "gray", ""):
        assert not names_colour(text), text
