"""How varied scenes are: which objects, how many, how often each thing happens. One declaration for each choice.

    core   about 40 objects that are easy to tell apart; what the 64-pixel model was trained on
    all    every picture there is
    rich   about 130 clear objects, several of a kind, overlaps, light, patterns, more words

Every share is a probability; a share of 0 draws nothing, so what a choice leaves out does not move its other draws.
"""

import dataclasses
import functools

from editmgt_jax.data.scenes import phrases, sprites

OBJECTS = ("core", "all", "rich")

RICH = sprites.CORE + sprites.words(
    "dog, horse, giraffe, zebra, tiger, rabbit, hedgehog, monkey, duck, parrot, swan, peacock, rooster, snake, crocodile, "
    "octopus, jellyfish, shark, whale, snail, bee, ladybug, spider, caterpillar, sheep, polar bear, teddy bear, dragon, "
    "lemon, cherries, pear, avocado, corn, chili pepper, hot dog, french fries, popcorn, doughnut, cupcake, "
    "birthday cake, cookie, pretzel, cheese wedge, coffee, ice cream, lollipop, candy, "
    "tulip, palm tree, maple leaf, potted plant, "
    "truck, fire engine, ambulance, scooter, locomotive, race car, airplane, skateboard, ufo, "
    "bed, drum, violin, soccer ball, football, dice, dartboard, tv, camera, light bulb, candle, book, magnet, hammer, axe, "
    "ladder, basket, top hat, helmet, hiking boot, t-shirt, jeans, eyeglasses, shopping cart, kite, gem, boxing glove, "
    "accordion, fire extinguisher, toolbox"
)
RICH_NOVEL = sprites.NOVEL + sprites.words(
    "owl, lobster, watermelon, broccoli, trumpet, motorcycle, dress, castle, tomato"
)
RICH_ACTIONS = (*sprites.CORE_ACTIONS, "cartwheeling", "surfing", "juggling")


@dataclasses.dataclass(frozen=True)
class Variety:
    """What scenes show and say. Lengths are shares of the side of the picture."""

    names: tuple[str, ...]  # drawn evenly; people stand in it several times so that they are not rare
    actions: tuple[str, ...]
    tones: tuple[str, ...]
    novel: tuple[str, ...] = sprites.NOVEL  # never in training
    novel_share: float = 0.14  # of the held-out examples of the five categories that can be about a novel object

    one: float = 0.6  # scenes of one thing, of two; the rest show three
    two: float = 0.35
    smallest: tuple[float, float, float] = (0.4, 0.4, 0.4)  # sides of objects in scenes of one, two, three
    largest: tuple[float, float, float] = (0.58, 0.5, 0.42)
    jitter: float = 0.02  # of the position within a slot
    depth: tuple[float, float] = (0.80, 0.93)  # rows where things stand
    looks: tuple[str, ...] = ()  # that objects can be given besides the colours of `colours.TARGET_HUES`
    given_look: float = 0.15  # things that are not as their picture is
    replaced_look: float = 0.1  # the same, of what replaces another thing
    twin: float = 0.0  # scenes of several where the second thing is of the first one's kind
    twin_look: float = 0.5
    overlap: float = 0.0  # scenes of two where one stands partly before the other
    overlap_gap: tuple[float, float] = (0.28, 0.4)  # from the middle of one to the middle of the other
    visible: float = 0.0  # of an edited thing, how much must be seen
    light: float = 0.0  # scenes whose light differs from the panorama's

    templates: dict = dataclasses.field(default_factory=lambda: phrases.TEMPLATES)
    places: dict = dataclasses.field(default_factory=lambda: {name: (say,) for name, say in sprites.PANORAMAS.items()})
    frames: tuple[str, ...] = ("please {}",)  # polite forms of a request
    polite: float = 0.06
    formal: float = 0.2  # instructions with a capital letter and a full stop
    named_colour: float = 0.12  # mentions of an unpainted thing that may name its natural colour
    placed: float = 0.15  # mentions of one of several things that say where it is
    before: float = 0.0  # of those, 'the left cat' and not 'the cat on the left'

    def __post_init__(self):
        if self.one + self.two > 1 or {*self.names} & {*self.novel}:
            raise ValueError("scenes of one and of two are at most all scenes, and no name is novel")


@functools.cache
def variety(objects: str) -> Variety:
    """The `Variety` that one of `OBJECTS` stands for."""
    return {"core": _core, "all": _all, "rich": _rich}[objects]()


def _core():
    return Variety(sprites.CORE + ("man", "woman") * 2, sprites.CORE_ACTIONS, sprites.CORE_TONES)


def _all():
    names, people = sprites.catalogue()
    actions, tones = sorted({action for _, action, _ in people}), sorted({tone for _, _, tone in people})
    names = tuple(name for name in sorted(names) if name not in sprites.NOVEL)
    return Variety(names + ("man", "woman") * 12, tuple(actions), tuple(tones))


def _rich():
    return Variety(
        RICH + ("man", "woman") * 6,
        RICH_ACTIONS,
        sprites.CORE_TONES,
        RICH_NOVEL,
        one=0.55,
        two=0.33,
        smallest=(0.4, 0.38, 0.36),
        largest=(0.62, 0.52, 0.44),
        jitter=0.035,
        depth=(0.78, 0.95),
        looks=("brown", "black", "white", "gray", "striped", "dotted", "checkered"),
        given_look=0.2,
        replaced_look=0.15,
        twin=0.22,
        overlap=0.3,
        visible=0.62,
        light=0.45,
        templates=phrases.RICH_TEMPLATES,
        places=phrases.RICH_PLACES,
        frames=phrases.FRAMES,
        polite=0.15,
        formal=0.25,
        named_colour=0.25,
        placed=0.25,
        before=0.45,
    )
