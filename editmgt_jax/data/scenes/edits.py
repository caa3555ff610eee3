"""Planning edits: a scene before, a scene after, and the words that lead from one to the other. Draws no pictures.

Every quantity comes from the dice of one example. The first thing of a scene is its main one, what an edit is about.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from editmgt_jax.data.scenes import colours, patterns, phrases, sprites
from editmgt_jax.data.scenes.drawing import LIGHTS, Scene, Thing
from editmgt_jax.data.scenes.variety import Variety, variety

if TYPE_CHECKING:
    from editmgt_jax.data.scenes.source import SceneConfig

_SLOTS = {  # number of objects -> centre of each slot, as a share of the picture
    1: {"left": 0.25, "middle": 0.5, "right": 0.75},
    2: {"left": 0.25, "right": 0.75},
    3: {"left": 0.2, "middle": 0.5, "right": 0.8},
}
_PERSON = 1.25  # people are drawn thinner than objects


@dataclasses.dataclass(frozen=True)
class Plan:
    """An edit before it is drawn: what to do to which scene, in which words."""

    kind: str  # a key of phrases.TEMPLATES
    source: Scene
    target: Scene
    subject: str  # with the background and the template, this decides the split
    query: str
    slots: dict
    style: str | None = None
    facts: dict = dataclasses.field(default_factory=dict)


class Dice:
    """The draws of one example, a function of the numbers given."""

    def __init__(self, *entropy: int):
        self._generator = np.random.default_rng(entropy)

    def chance(self, share: float) -> bool:
        """Whether something of this probability happens; a share of 0 takes no draw."""
        return share > 0 and self._generator.random() < share

    def number(self, low: float, high: float) -> float:
        """A float drawn uniformly from [low, high)."""
        return low + (high - low) * self._generator.random()

    def pick(self, options: Sequence) -> Any:
        """One of the options, each as likely."""
        return options[int(len(options) * self._generator.random())]


class Composer:
    """Draws scenes and plans edits for one configuration and one sequence of draws."""

    def __init__(self, config: "SceneConfig", dice: Dice):
        self.config, self.dice, self.size, self.variety = config, dice, config.size, variety(config.objects)
        # Fixed for the example, so that redrawing cannot skew it.
        self.novel = config.split == "heldout" and dice.chance(self.variety.novel_share)

    def _new_key(self, taken):
        """A name (or person) that shares no word with those taken, as its sprite key."""
        used = {word for name in taken for word in name.split()}
        while True:
            name = self.dice.pick(self.variety.names)
            if used.isdisjoint(name.split()):
                break
        return self._person(name) if name in phrases.PRONOUNS else name

    def _person(self, name):
        return name, self.dice.pick(self.variety.actions), self.dice.pick(self.variety.tones)

    def _looks(self, key):
        """The colours and patterns that a thing can be given."""
        return sprites.possible_colours(key) + tuple(
            look for look in (self.variety.looks and sprites.other_looks(key)) if look in self.variety.looks
        )

    def _look(self, key, share):
        options = self._looks(key)
        return self.dice.pick(options) if options and self.dice.chance(share) else None

    def _side(self, share, key):
        step = max(1, self.size // 32)
        side = int(-(-share * self.size // step)) * step
        return round(side * _PERSON) if isinstance(key, tuple) else side

    def _centres(self, count):
        """Where each slot of a scene of `count` is, as a share of the picture."""
        if count == 2 and self.dice.chance(self.variety.overlap):
            middle, gap = self.dice.number(0.44, 0.56), self.dice.number(*self.variety.overlap_gap)
            return {"left": middle - gap / 2, "right": middle + gap / 2}
        return _SLOTS[count]

    def _stand(self, key, slot, centre, count, share, look_share):
        """A thing of its own size and position in a slot of a scene; `share` is its side, None draws it."""
        dice, size, varied = self.dice, self.size, self.variety
        side = self._side(share or dice.number(varied.smallest[count - 1], varied.largest[count - 1]), key)
        depth = dice.number(*varied.depth)
        if count == 3:
            depth = 0.78 if slot == "middle" else 0.92
        x = round(size * (centre + dice.number(-varied.jitter, varied.jitter)))
        thing = Thing(key, self._look(key, look_share), side, x, round(depth * size), dice.chance(0.5), slot)
        return self._inside(thing)

    def _inside(self, thing):
        """The same thing, shifted so that the picture does not cut it off."""
        half, height = sprites.extent(thing.key, thing.side)
        x = min(max(thing.x, half), self.size - half)
        return dataclasses.replace(thing, x=x, y=max(thing.y, height + 1))

    def scene(self, main: sprites.Key | None = None, count: int | None = None, share: float | None = None) -> Scene:
        """A scene of one, two or three things; the first of its things is the main one."""
        dice, varied, m = self.dice, self.variety, sprites.margin(self.size)
        if count is None:
            draw = dice.number(0, 1)
            count = 1 if draw < varied.one else 2 if draw < varied.one + varied.two else 3
        centres = self._centres(count)
        slots, things, taken = list(centres), [], []
        for position in range(count):
            key, look_share = main if position == 0 else None, varied.given_look
            if position == 1 and self._can_be_twin(things[0]) and dice.chance(varied.twin):
                key, look_share = things[0].key, varied.twin_look
            key = key or self._new_key(taken)
            slot = slots.pop(int(dice.number(0, len(slots))))
            things.append(self._stand(key, slot, centres[slot], count, share if position == 0 else None, look_share))
            taken.append(things[-1].name)
        shift = tuple(int(dice.number(-m, m + 1)) for _ in range(2))
        background = dice.pick(tuple(sprites.PANORAMAS))
        direction, flip = int(dice.number(0, sprites.VIEWS)), dice.chance(0.5)
        light = dice.pick(LIGHTS) if dice.chance(varied.light) else None
        return Scene(background, direction, shift, flip, tuple(things), light)

    def _can_be_twin(self, thing):
        return isinstance(thing.key, str) and thing.name not in sprites.PLURAL

    def scene_about_something(self, **options: Any) -> Scene:
        """A scene whose main thing may, in the held-out split, be one that training never showed."""
        return self.scene(main=self.dice.pick(self.variety.novel) if self.novel else None, **options)

    # ---- words for things

    def _phrase(self, thing, adjective_share):
        """'cat', 'red car' or, where the colour says nothing new, its plain name."""
        look = thing.look
        if look is None and sprites.possible_colours(thing.key) and self.dice.chance(self.variety.named_colour):
            look = sprites.natural_colour(thing.key)
        return f"{look} {thing.name}" if look and self.dice.chance(adjective_share) else thing.name

    def _old(self, thing, scene):
        """How an instruction refers to something in the picture, as (query, words)."""
        twins = [other for other in scene.things if other is not thing and other.name == thing.name]
        apart = (
            twins and thing.seen_colour and all(other.seen_colour not in (None, thing.seen_colour) for other in twins)
        )
        if apart and self.dice.chance(0.5):
            return f"{thing.seen_colour} {thing.name}", f"the {thing.seen_colour} {thing.name}"
        query = thing.name if twins else self._phrase(thing, 0.7)
        if not twins and not (len(scene.things) > 1 and self.dice.chance(self.variety.placed)):
            return query, f"the {query}"
        if self.dice.chance(self.variety.before):
            return f"{thing.slot} {query}", f"the {thing.slot} {query}"
        return query, f"the {query} {self._where(thing.slot)}"

    def _new(self, thing, another=False):
        """How an instruction asks for something, as (query, words); a changed colour or an action is always said."""
        query = self._phrase(thing, 1)
        if another:
            return query, f"another {query}"
        if isinstance(thing.key, tuple):
            action = thing.key[1]
            if action in ("lifting weights", "raising a hand"):
                return thing.name, f"a {thing.name} {action}"
            query = f"{action} {thing.name}"
        return query, sprites.article(query, thing.name)

    def _where(self, slot):
        return self.dice.pick(phrases.POSITIONS[slot])

    # ---- the categories: each returns a Plan, or None where these draws lead nowhere

    def add(self) -> "Plan | None":
        """Plans an edit of the category `add`."""
        target = self.scene()
        thing, rest = target.things[0], target.things[1:]
        obvious = len(rest) > 0 or thing.slot == "middle"
        where = "" if obvious and self.dice.chance(0.2) else self._where(thing.slot)
        query, new = self._new(thing, another=any(other.name == thing.name for other in rest))
        source = dataclasses.replace(target, things=rest)
        facts = {"new": thing.name, "colour": _measurable(thing.look), "position": thing.slot}
        return Plan("add", source, target, thing.name, query, {"new": new, "where": where}, facts=facts)

    def remove(self) -> "Plan | None":
        """Plans an edit of the category `remove`."""
        source = self.scene_about_something()
        thing = source.things[0]
        query, old = self._old(thing, source)
        target = dataclasses.replace(source, things=source.things[1:])
        return Plan("remove", source, target, thing.name, query, {"old": old}, facts={"old": thing.name})

    def replace(self) -> "Plan | None":
        """Plans an edit of the category `replace`."""
        source = self.scene_about_something()
        thing = source.things[0]
        key = self._new_key([other.name for other in source.things])
        fresh = self._instead_of(thing, key, self._look(key, self.variety.replaced_look))
        query, old = self._old(thing, source)
        target = dataclasses.replace(source, things=(fresh, *source.things[1:]))
        slots = {"old": old, "new": self._new(fresh)[1]}
        facts = {"old": thing.name, "new": fresh.name, "colour": _measurable(fresh.look)}
        return Plan("replace", source, target, thing.name, query, slots, facts=facts)

    def _instead_of(self, thing, key, look):
        """Another thing of the same size, where `thing` stands."""
        side = round(thing.side / (_PERSON if isinstance(thing.key, tuple) else 1))
        side = round(side * _PERSON) if isinstance(key, tuple) else side
        return self._inside(dataclasses.replace(thing, key=key, look=look, side=side))

    def distractors(self, scene: Scene, count: int) -> list[Scene]:
        """`count` scenes, each with a different object, shown nowhere in `scene`, instead of its main thing."""
        taken, scenes = [thing.name for thing in scene.things], []
        for _ in range(count):
            key = self._new_key(taken)
            taken.append(key[0] if isinstance(key, tuple) else key)
            fresh = self._instead_of(scene.things[0], key, None)
            scenes.append(dataclasses.replace(scene, things=(fresh, *scene.things[1:])))
        return scenes

    def colour(self) -> "Plan | None":
        """Plans an edit of the category `colour`."""
        source = self.scene_about_something()
        thing = source.things[0]
        now = thing.seen_colour
        options = [name for name in self._looks(thing.key) if name != now]
        if not options:
            return None
        wanted = self.dice.pick(options)
        query, old = self._old(thing, source)
        target = dataclasses.replace(source, things=(dataclasses.replace(thing, look=wanted), *source.things[1:]))
        facts = {"old": thing.name, "colour": _measurable(wanted), "colour_before": now}
        slots = {"old": old, "colour": wanted, "a_colour": sprites.article(wanted, wanted)}
        slots["marks"] = phrases.MARKS.get(wanted)
        kind = "pattern" if wanted in patterns.PATTERNS else "recolour"
        return Plan(kind, source, target, thing.name, query, slots, facts=facts)

    def background(self) -> "Plan | None":
        """Plans an edit of the category `background`."""
        source = self.scene_about_something()
        place = self.dice.pick([name for name in sprites.PANORAMAS if name != source.background])
        target = dataclasses.replace(source, background=place, direction=int(self.dice.number(0, sprites.VIEWS)))
        sayings = self.variety.places[place]
        slots = {"place": sayings[0] if len(sayings) == 1 else self.dice.pick(sayings)}
        return Plan("background", source, target, place, "background", slots, facts={"new": place})

    def style(self) -> "Plan | None":
        """Plans an edit of the category `style`."""
        source, style = self.scene(), self.dice.pick(tuple(phrases.STYLES))
        words = self.dice.pick(phrases.STYLES[style])
        query = words.removeprefix("a ")
        return Plan("style", source, source, style, query, {"style": words}, style=style, facts={"new": style})

    def motion(self) -> "Plan | None":
        """Plans an edit of the category `motion`."""
        draw = self.dice.number(0, 1)
        if draw < 0.35 and not self.novel:
            return self._act()
        if draw < 0.65:
            return self._move()
        if draw < 0.8:
            source = self.scene_about_something()
            thing = source.things[0]
            return self._motion("mirror", source, dataclasses.replace(thing, flip=not thing.flip), {})
        return self._resize()

    def _motion(self, kind, source, moved, slots, old=None):
        thing = source.things[0]
        query, words = old or self._old(thing, source)
        target = dataclasses.replace(source, things=(moved, *source.things[1:]))
        facts = {"old": thing.name, "position": moved.slot}
        return Plan(kind, source, target, thing.name, query, {"old": words, **slots}, facts=facts)

    def _act(self):
        name, before, tone = self._person(self.dice.pick(tuple(phrases.PRONOUNS)))
        source = self.scene(main=(name, before, tone))
        action = self.dice.pick([action for action in self.variety.actions if action != before])
        moved = self._inside(dataclasses.replace(source.things[0], key=(name, action, tone)))
        pronoun = phrases.PRONOUNS[name]
        old = (pronoun, pronoun) if self.dice.chance(0.15) else None
        plan = self._motion("act", source, moved, {"verb": phrases.VERBS[action], "doing": action}, old)
        return dataclasses.replace(plan, facts={**plan.facts, "new": action})

    def _move(self):
        source = self.scene_about_something(count=1, share=self.dice.number(0.4, 0.5))
        thing = source.things[0]
        slot = self.dice.pick([slot for slot in _SLOTS[1] if slot != thing.slot])
        moved = dataclasses.replace(thing, x=round(self.size * _SLOTS[1][slot]), slot=slot)
        slots = {"side": self.dice.pick(phrases.SIDES[slot]), "where": self._where(slot)}
        return self._motion("move", source, self._inside(moved), slots)

    def _resize(self):
        source = self.scene_about_something(count=1 if self.dice.chance(0.7) else 2, share=self.dice.number(0.4, 0.44))
        small = source.things[0]
        large = self._inside(dataclasses.replace(small, side=round(1.4 * small.side)))
        small = dataclasses.replace(small, x=large.x, y=large.y)
        grow = self.dice.chance(0.5)
        before, after = (small, large) if grow else (large, small)
        source = dataclasses.replace(source, things=(before, *source.things[1:]))
        return self._motion("enlarge" if grow else "shrink", source, after, {})


def worded(plan: Plan, config: "SceneConfig", dice: Dice) -> tuple[str, str] | None:
    """(template, instruction) in words that belong to the split, or None where all belong to the other one."""
    varied, held_out = variety(config.objects), config.split == "heldout"
    unseen = plan.subject in varied.novel
    options = [
        template
        for template in varied.templates[plan.kind]
        if (unseen or phrases.is_held_out(plan.subject, plan.source.background, template) == held_out)
        and phrases.fits(template, plan.slots)
    ]
    if not options:
        return None
    template = dice.pick(options)
    words, mark = phrases.fill(template, plan.slots), "."
    polite, formal = dice.chance(varied.polite), dice.chance(varied.formal)
    if polite and phrases.is_request(template):
        frame = varied.frames[0] if len(varied.frames) == 1 else dice.pick(varied.frames)
        words, mark = frame.format(words), "?" if " you " in frame else "."
    if len(words.split()) > phrases.MAX_WORDS or not phrases.mentions(words, plan.query):
        return None
    return template, words[0].upper() + words[1:] + mark if formal else words


def is_novel(plan: Plan, varied: Variety) -> bool:
    """Whether the source shows an object that training never shows."""
    return any(thing.name in varied.novel for thing in plan.source.things)


def _measurable(look):
    """The look where `colours.name_colour` can tell that it is there, else None."""
    return look if look in colours.NAMES else None
