"""The words of instructions: templates, synonyms, positions. Knows nothing about pictures.

Slots   {old} something in the picture, with 'the'   {new} something to come, with an article   {where} a position
        {side} 'left', 'right', 'middle'   {colour}   {place} a background   {style}   {verb} {doing} an action
"""

import zlib

MAX_WORDS = 14

TEMPLATES = {  # kind of edit -> phrasings
    "add": (
        "add {new} {where}",
        "put {new} {where}",
        "place {new} {where}",
        "insert {new} {where}",
        "draw {new} {where}",
        "i want {new} {where}",
        "there should be {new} {where}",
    ),
    "remove": (
        "remove {old}",
        "delete {old}",
        "erase {old}",
        "take away {old}",
        "get rid of {old}",
        "make {old} disappear",
        "take {old} out of the picture",
    ),
    "replace": (
        "replace {old} with {new}",
        "replace {old} by {new}",
        "swap {old} for {new}",
        "turn {old} into {new}",
        "change {old} into {new}",
        "exchange {old} for {new}",
        "put {new} in place of {old}",
    ),
    "recolour": (
        "make {old} {colour}",
        "turn {old} {colour}",
        "paint {old} {colour}",
        "color {old} {colour}",
        "change {old} to {colour}",
        "change the color of {old} to {colour}",
        "the color of {old} should be {colour}",
    ),
    "background": (
        "change the background to {place}",
        "make the background {place}",
        "set the background to {place}",
        "replace the background with {place}",
        "swap the background for {place}",
        "use {place} as the background",
        "the background should be {place}",
    ),
    "style": (
        "make it {style}",
        "turn it into {style}",
        "convert the picture to {style}",
        "change the style to {style}",
        "render the picture as {style}",
        "show everything as {style}",
        "redo this in {style}",
    ),
    "act": (
        "make {old} {verb}",
        "let {old} {verb}",
        "have {old} {verb}",
        "show {old} {doing}",
        "change {old} to be {doing}",
        "i want {old} {doing}",
    ),
    "move": (
        "move {old} to the {side}",
        "shift {old} to the {side}",
        "slide {old} to the {side}",
        "push {old} to the {side}",
        "put {old} {where}",
        "bring {old} to the {side}",
    ),
    "mirror": (
        "flip {old}",
        "mirror {old}",
        "turn {old} around",
        "flip {old} horizontally",
        "make {old} face the other way",
    ),
    "enlarge": (
        "make {old} bigger",
        "make {old} larger",
        "enlarge {old}",
        "scale up {old}",
        "increase the size of {old}",
    ),
    "shrink": (
        "make {old} smaller",
        "shrink {old}",
        "scale down {old}",
        "reduce the size of {old}",
        "decrease the size of {old}",
    ),
}

POSITIONS = {
    "left": ("on the left", "on the left side", "at the left"),
    "middle": ("in the middle", "in the center", "at the center"),
    "right": ("on the right", "on the right side", "at the right"),
}
SIDES = {"left": ("left", "left side"), "middle": ("middle", "center"), "right": ("right", "right side")}

STYLES = {
    "grayscale": ("black and white", "grayscale"),
    "sepia": ("sepia", "sepia tones"),
    "negative": ("a negative", "inverted colors"),
    "sketch": ("a pencil sketch", "a pencil drawing"),
    "poster": ("a poster", "poster colors"),
    "pixels": ("pixel art", "big pixels"),
}

VERBS = {  # action as the picture's label says it -> what to ask for
    "standing": "stand",
    "walking": "walk",
    "running": "run",
    "kneeling": "kneel",
    "raising a hand": "raise a hand",
    "bowing": "bow",
    "cartwheeling": "cartwheel",
    "lifting weights": "lift weights",
    "juggling": "juggle",
    "surfing": "surf",
    "dancing": "dance",
}
PRONOUNS = {"man": "him", "woman": "her"}


def is_held_out(subject, background, template):
    """Whether this combination belongs to the held-out split (one in ten does) and so never to training."""
    return zlib.crc32(f"{subject}|{background}|{template}".encode()) % 10 == 0


def fill(template, slots):
    """Put words into a template; an empty slot leaves no trace."""
    return " ".join(template.format_map(slots).split())


def mentions(instruction, query):
    """Whether the first place where `query` occurs in the instruction is a whole phrase, not part of a word."""
    start = instruction.find(query)
    end = start + len(query)
    return (
        start >= 0
        and (start == 0 or not instruction[start - 1].isalnum())
        and (end == len(instruction) or not instruction[end].isalnum())
    )
