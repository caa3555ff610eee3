"""The words of instructions: templates, synonyms, positions. Knows nothing about pictures.

Slots   {old} something in the picture, with 'the'   {new} something to come, with an article   {where} a position
        {side} 'left', 'right', 'middle'   {colour}   {a_colour} with an article   {marks} 'stripes'   {place} a background
        {style}   {verb} {doing} an action
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

_MORE = {  # further phrasings, other orders of words among them
    "add": (
        "{where}, add {new}",
        "{where}, draw {new}",
        "{where}, there should be {new}",
        "give me {new} {where}",
        "show {new} {where}",
        "include {new} {where}",
        "paint {new} {where}",
        "set {new} {where}",
        "i'd like {new} {where}",
        "i'd like to see {new} {where}",
        "let there be {new} {where}",
        "i need {new} {where}",
    ),
    "remove": (
        "cut out {old}",
        "wipe out {old}",
        "clear away {old}",
        "hide {old}",
        "eliminate {old}",
        "throw out {old}",
        "make {old} vanish",
        "i don't want {old}",
        "i don't need {old}",
        "{old} should be gone",
        "{old} should disappear",
        "there should be nothing where {old} is",
    ),
    "replace": (
        "swap {old} with {new}",
        "trade {old} for {new}",
        "transform {old} into {new}",
        "make {old} {new}",
        "substitute {new} for {old}",
        "use {new} instead of {old}",
        "draw {new} instead of {old}",
        "instead of {old}, show {new}",
        "instead of {old}, there should be {new}",
        "where {old} is, put {new}",
        "i'd like {new} instead of {old}",
        "{old} should become {new}",
    ),
    "recolour": (
        "recolor {old} {colour}",
        "recolor {old} to {colour}",
        "dye {old} {colour}",
        "give {old} {a_colour} color",
        "make the color of {old} {colour}",
        "switch the color of {old} to {colour}",
        "let {old} be {colour}",
        "have {old} in {colour}",
        "i'd like {old} to be {colour}",
        "i want {old} to be {colour}",
        "{old} should be {colour}",
        "{old} should be {colour} instead",
    ),
    "background": (
        "show {place} in the background",
        "put {place} in the background",
        "let the background be {place}",
        "switch the background to {place}",
        "turn the background into {place}",
        "as the background, use {place}",
        "in the background, show {place}",
        "i'd like {place} as the background",
        "i want {place} in the background",
        "{place} should be the background",
    ),
    "style": (
        "make the picture {style}",
        "make everything {style}",
        "turn the picture into {style}",
        "transform the image into {style}",
        "restyle the image as {style}",
        "show the picture in {style}",
        "i'd like the picture as {style}",
        "i want the whole image as {style}",
        "the picture should be {style}",
        "everything should look like {style}",
    ),
    "act": (
        "get {old} to {verb}",
        "ask {old} to {verb}",
        "draw {old} {doing}",
        "i'd like {old} to {verb}",
        "i want {old} to {verb}",
        "i'd like to see {old} {doing}",
        "{old} should {verb}",
        "{old} should be {doing}",
    ),
    "move": (
        "drag {old} to the {side}",
        "carry {old} to the {side}",
        "take {old} to the {side}",
        "set {old} {where}",
        "place {old} {where}",
        "reposition {old} to the {side}",
        "let {old} be {where}",
        "i'd like {old} {where}",
        "i want {old} {where}",
        "{old} should be {where}",
        "{old} should move to the {side}",
    ),
    "mirror": (
        "reverse {old}",
        "reflect {old} horizontally",
        "let {old} look the other way",
        "make {old} point the other way",
        "show the mirror image of {old}",
        "show {old} from the other side",
        "i'd like {old} flipped",
        "{old} should face the other way",
        "{old} should be mirrored",
    ),
    "enlarge": (
        "make {old} grow",
        "make {old} a bit larger",
        "let {old} be bigger",
        "give {old} a bigger size",
        "blow up {old}",
        "i'd like {old} larger",
        "i want {old} bigger",
        "{old} should be bigger",
        "{old} should be larger",
    ),
    "shrink": (
        "make {old} a bit smaller",
        "let {old} be smaller",
        "give {old} a smaller size",
        "i'd like {old} smaller",
        "i want {old} smaller",
        "{old} should be smaller",
        "{old} should shrink",
        "cut the size of {old}",
    ),
}
_PATTERN = (
    "make {old} {colour}",
    "turn {old} {colour}",
    "paint {old} {colour}",
    "give {old} {marks}",
    "give {old} {a_colour} pattern",
    "put {marks} on {old}",
    "draw {marks} on {old}",
    "cover {old} with {marks}",
    "decorate {old} with {marks}",
    "change {old} to be {colour}",
    "i'd like {old} to be {colour}",
    "i want {marks} on {old}",
    "{old} should be {colour}",
    "{old} should have {marks}",
)
RICH_TEMPLATES = {kind: some + _MORE[kind] for kind, some in TEMPLATES.items()} | {"pattern": _PATTERN}
MARKS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
FRAMES = ("please {}", "{} please", "could you {}", "can you {}", "would you {}")
_STATEMENTS = ("i", "i'd", "the", "there", "{old}", "{place}", "{where},", "everything", "instead", "where", "as", "in")

POSITIONS = {
    "left": ("on the left", "on the left side", "at the left"),
    "middle": ("in the middle", "in the center", "at the center"),
    "right": ("on the right", "on the right side", "at the right"),
}
SIDES = {"left": ("left", "left side"), "middle": ("middle", "center"), "right": ("right", "right side")}

RICH_PLACES = {  # backgrounds -> how an instruction may say them
    "apartment": ("an apartment", "the apartment", "an empty room"),
    "bridge": ("a bridge", "the bridge"),
    "city": ("a city", "the city", "a street"),
    "dawn": ("dawn", "the dawn"),
    "esplanade": ("an esplanade", "the esplanade"),
    "forest": ("a forest", "the forest", "the woods"),
    "hall": ("a hall", "the hall", "a large hall"),
    "lab": ("a lab", "the lab"),
    "lobby": ("a lobby", "the lobby"),
    "night": ("night", "the night"),
    "park": ("a park", "the park", "a meadow"),
    "sky": ("the sky", "clouds", "a cloudy sky"),
    "studio": ("a studio", "the studio"),
    "sunrise": ("sunrise", "the sunrise"),
    "sunset": ("sunset", "the sunset"),
    "venice": ("venice",),
    "warehouse": ("a warehouse", "the warehouse"),
    "workshop": ("a workshop", "the workshop"),
}

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


def is_held_out(subject: str, background: str, template: str) -> bool:
    """Whether this combination belongs to the held-out split (one in ten does) and so never to training."""
    return zlib.crc32(f"{subject}|{background}|{template}".encode()) % 10 == 0


def fits(template: str, slots: dict[str, str]) -> bool:
    """Whether a template reads well with these words: a clause of its own needs a place, and a pronoun cannot lead."""
    needs_place = template.startswith("{where},") and not slots["where"]
    return not needs_place and not (template.startswith("{old}") and slots["old"] in PRONOUNS.values())


def is_request(template: str) -> bool:
    """Whether a template tells someone to do something, so that a polite form can frame it."""
    return template.split()[0] not in _STATEMENTS


def fill(template: str, slots: dict[str, str]) -> str:
    """Put words into a template; an empty slot leaves no trace."""
    return " ".join(template.format_map(slots).split())


def mentions(instruction: str, query: str) -> bool:
    """Whether the first occurrence of `query` in the instruction is a whole phrase, not part of a word."""
    start = instruction.find(query)
    end = start + len(query)
    return (
        start >= 0
        and (start == 0 or not instruction[start - 1].isalnum())
        and (end == len(instruction) or not instruction[end].isalnum())
    )
