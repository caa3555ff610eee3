"""Planning edits: a scene before, a scene after, and the words that lead from one to the other. Draws no pictures.

Every quantity comes from the dice of one example. The first thing of a scene is its main one, what an edit is about.
"""

import dataclasses
import functools

import numpy as np

from editmgt_jax.data.scenes import phrases, sprites
from editmgt_jax.data.scenes.drawing import Scene, Thing

_SLOTS = {  # number of objects -> centre of each slot, as a share of the picture
    1: {"left": 0.25, "middle": 0.5, "right": 0.75},
    2: {"left": 0.25, "right": 0.75},
    3: {"left": 0.2, "middle": 0.5, "right": 0.8},
}
_LARGEST = {1: 0.58, 2: 0.5, 3: 0.42}  # side of an object as a share of the picture; the smallest is 0.4
_PERSON = 1.25  # people are drawn thinner than objects
_NOVEL_SHARE = 0.14  # of the held-out examples of the five categories that can be about an unseen object


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

    def __init__(self, *entropy):
        self._generator = np.random.default_rng(entropy)

    def chance(self, share):
        return self._generator.random() < share

    def number(self, low, high):
        return low + (high - low) * self._generator.random()

    def pick(self, options):
        return options[int(len(options) * self._generator.random())]


@functools.cache
def _kinds(objects):
    """What scenes of this kind show: (names, people counted several times so that they are not rare), actions, tones."""
    names, people = sprites.catalogue()
    if objects == "core":
        return sprites.CORE + ("man", "woman") * 2, sprites.CORE_ACTIONS, sprites.CORE_TONES
    actions, tones = sorted({action for _, action, _ in people}), sorted({tone for _, _, tone in people})
    names = tuple(name for name in sorted(names) if name not in sprites.NOVEL)
    return names + ("man", "woman") * 12, tuple(actions), tuple(tones)


class Composer:
    """Draws scenes and plans edits for one configuration and one sequence of draws."""

    def __init__(self, config, dice):
        self.config, self.dice, self.size = config, dice, config.size
        self.names, self.actions, self.tones = _kinds(config.objects)
        self.novel = config.split == "heldout" and dice.chance(_NOVEL_SHARE)  # fixed, so that redrawing cannot skew it

    def _new_key(self, taken):
        """A name (or person) that shares no word with those taken, as its sprite key."""
        used = {word for name in taken for word in name.split()}
        while True:
            name = self.dice.pick(self.names)
            if used.isdisjoint(name.split()):
                break
        return self._person(name) if name in phrases.PRONOUNS else name

    def _person(self, name):
        return name, self.dice.pick(self.actions), self.dice.pick(self.tones)

    def _colour(self, key, share):
        options = sprites.possible_colours(key)
        return self.dice.pick(options) if options and self.dice.chance(share) else None

    def _side(self, share, key):
        step = max(1, self.size // 32)
        side = int(-(-share * self.size // step)) * step
        return round(side * _PERSON) if isinstance(key, tuple) else side

    def _stand(self, key, slot, count, share=None, colour_share=0.15):
        """A thing of its own size and place in a slot of a scene of `count`."""
        dice, size = self.dice, self.size
        side = self._side(share or dice.number(0.4, _LARGEST[count]), key)
        depth = dice.number(0.80, 0.93)
        if count == 3:
            depth = 0.78 if slot == "middle" else 0.92
        x = round(size * (_SLOTS[count][slot] + dice.number(-0.02, 0.02)))
        thing = Thing(key, self._colour(key, colour_share), side, x, round(depth * size), dice.chance(0.5), slot)
        return self._inside(thing)

    def _inside(self, thing):
        """The same thing, shifted so that the picture does not cut it off."""
        layer = sprites.layer(thing.key, thing.side, None)
        x = min(max(thing.x, layer.half), self.size - layer.half)
        return dataclasses.replace(thing, x=x, y=max(thing.y, layer.ground[1] + 1))

    def scene(self, main=None, count=None, share=None):
        """A scene of 1 (60 %), 2 (35 %) or 3 (5 %) things; the first of its things is the main one."""
        dice, m = self.dice, sprites.margin(self.size)
        if count is None:
            draw = dice.number(0, 1)
            count = 1 if draw < 0.6 else 2 if draw < 0.95 else 3
        slots, things, taken = list(_SLOTS[count]), [], []
        for position in range(count):
            key = main if main and position == 0 else self._new_key(taken)
            slot = slots.pop(int(dice.number(0, len(slots))))
            things.append(self._stand(key, slot, count, share if position == 0 else None))
            taken.append(things[-1].name)
        shift = tuple(int(dice.number(-m, m + 1)) for _ in range(2))
        background = dice.pick(tuple(sprites.PANORAMAS))
        return Scene(background, int(dice.number(0, sprites.VIEWS)), shift, dice.chance(0.5), tuple(things))

    def scene_about_something(self, **options):
        """A scene whose main thing may, in the held-out split, be one that training never showed."""
        return self.scene(main=self.dice.pick(sprites.NOVEL) if self.novel else None, **options)

    # ---- words for things

    def _phrase(self, thing, adjective_share):
        """'cat', 'red car' or, where the colour says nothing new, its plain name."""
        colour = thing.colour
        if colour is None and sprites.possible_colours(thing.key) and self.dice.chance(0.12):
            colour = sprites.natural_colour(thing.key)
        return f"{colour} {thing.name}" if colour and self.dice.chance(adjective_share) else thing.name

    def _old(self, thing, scene):
        """How an instruction refers to something in the picture, as (query, words)."""
        query = self._phrase(thing, 0.7)
        where = self._where(thing.slot) if len(scene.things) > 1 and self.dice.chance(0.15) else ""
        return query, f"the {query} {where}".strip()

    def _new(self, thing):
        """How an instruction asks for something, as (query, words); a changed colour or an action is always said."""
        query = self._phrase(thing, 1)
        if isinstance(thing.key, tuple):
            action = thing.key[1]
            if action in ("lifting weights", "raising a hand"):
                return thing.name, f"a {thing.name} {action}"
            query = f"{action} {thing.name}"
        return query, sprites.article(query, thing.name)

    def _where(self, slot):
        return self.dice.pick(phrases.POSITIONS[slot])

    # ---- the categories: each returns a Plan, or None where these draws lead nowhere

    def add(self):
        target = self.scene()
        thing, rest = target.things[0], target.things[1:]
        obvious = len(rest) > 0 or thing.slot == "middle"
        where = "" if obvious and self.dice.chance(0.2) else self._where(thing.slot)
        query, new = self._new(thing)
        source = dataclasses.replace(target, things=rest)
        facts = {"new": thing.name, "colour": thing.colour, "position": thing.slot}
        return Plan("add", source, target, thing.name, query, {"new": new, "where": where}, facts=facts)

    def remove(self):
        source = self.scene_about_something()
        thing = source.things[0]
        query, old = self._old(thing, source)
        target = dataclasses.replace(source, things=source.things[1:])
        return Plan("remove", source, target, thing.name, query, {"old": old}, facts={"old": thing.name})

    def replace(self):
        source = self.scene_about_something()
        thing = source.things[0]
        key = self._new_key([other.name for other in source.things])
        fresh = self._in_place_of(thing, key, self._colour(key, 0.1))
        query, old = self._old(thing, source)
        target = dataclasses.replace(source, things=(fresh, *source.things[1:]))
        slots = {"old": old, "new": self._new(fresh)[1]}
        facts = {"old": thing.name, "new": fresh.name, "colour": fresh.colour}
        return Plan("replace", source, target, thing.name, query, slots, facts=facts)

    def _in_place_of(self, thing, key, colour):
        """Another thing of the same size, where `thing` stands."""
        side = round(thing.side / (_PERSON if isinstance(thing.key, tuple) else 1))
        side = round(side * _PERSON) if isinstance(key, tuple) else side
        return self._inside(dataclasses.replace(thing, key=key, colour=colour, side=side))

    def distractors(self, scene, count):
        """`count` scenes, each with a different object, shown nowhere in `scene`, in the place of its main thing."""
        taken, scenes = [thing.name for thing in scene.things], []
        for _ in range(count):
            key = self._new_key(taken)
            taken.append(key[0] if isinstance(key, tuple) else key)
            fresh = self._in_place_of(scene.things[0], key, None)
            scenes.append(dataclasses.replace(scene, things=(fresh, *scene.things[1:])))
        return scenes

    def colour(self):
        source = self.scene_about_something()
        thing = source.things[0]
        now = thing.colour or sprites.natural_colour(thing.key)
        options = [name for name in sprites.possible_colours(thing.key) if name != now]
        if not options:
            return None
        wanted = self.dice.pick(options)
        query, old = self._old(thing, source)
        target = dataclasses.replace(source, things=(dataclasses.replace(thing, colour=wanted), *source.things[1:]))
        facts = {"old": thing.name, "colour": wanted, "colour_before": now}
        return Plan("recolour", source, target, thing.name, query, {"old": old, "colour": wanted}, facts=facts)

    def background(self):
        source = self.scene_about_something()
        place = self.dice.pick([name for name in sprites.PANORAMAS if name != source.background])
        target = dataclasses.replace(source, background=place, direction=int(self.dice.number(0, sprites.VIEWS)))
        slots = {"place": sprites.PANORAMAS[place]}
        return Plan("background", source, target, place, "background", slots, facts={"new": place})

    def style(self):
        source, style = self.scene(), self.dice.pick(tuple(phrases.STYLES))
        words = self.dice.pick(phrases.STYLES[style])
        query = words.removeprefix("a ")
        return Plan("style", source, source, style, query, {"style": words}, style=style, facts={"new": style})

    def motion(self):
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
        action = self.dice.pick([action for action in self.actions if action != before])
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


def worded(plan, config, dice):
    """(template, instruction) in words that belong to the split, or None where all belong to the other one."""
    held_out, unseen = config.split == "heldout", plan.subject in sprites.NOVEL
    options = [
        template
        for template in phrases.TEMPLATES[plan.kind]
        if unseen or phrases.is_held_out(plan.subject, plan.source.background, template) == held_out
    ]
    if not options:
        return None
    template = dice.pick(options)
    words = phrases.fill(template, plan.slots)
    polite, formal = dice.chance(0.06), dice.chance(0.2)
    if polite and not words.startswith(("i ", "the ", "there ")):
        words = f"please {words}"
    if len(words.split()) > phrases.MAX_WORDS or not phrases.mentions(words, plan.query):
        return None
    return template, words[0].upper() + words[1:] + "." if formal else words


def is_novel(plan):
    return any(thing.name in sprites.NOVEL for thing in plan.source.things)
