"""What scenes can be said to show, and the captions that say it.

A scene holds one thing in one of nine places, or two things of which the first is left of, right of, above or below the
second. Things have a size, a colour and a shape. "a small red circle in the top left" and "a large green cross above a
small white square" are captions; :func:`parse_caption` reads exactly what ``str(scene)`` writes.

Two captions may describe the same pictures: what is left of something has it on its right. :meth:`Scene.canonical`
is the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from fewstep.errors import ConfigError, choose
from fewstep.networks import Vocabulary

__all__ = [
    "COLOURS",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "VOCABULARY",
    "Scene",
    "Thing",
    "parse_caption",
    "scenes",
]

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {  # 8-bit RGB of the brightest shade
    "red": (230, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 230, 50),
    "green": (40, 180, 60),
    "cyan": (50, 210, 220),
    "blue": (50, 80, 230),
    "purple": (150, 50, 200),
    "white": (240, 240, 240),
}
SIZES = ("small", "large")
PLACES = (  # row by row
    "in the top left",
    "at the top",
    "in the top right",
    "on the left",
    "in the centre",
    "on the right",
    "in the bottom left",
    "at the bottom",
    "in the bottom right",
)
RELATIONS = ("left of", "right of", "above", "below")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Args:
        size: one of SIZES.
        colour: one of COLOURS.
        shape: one of SHAPES.

    Raises:
        UnknownName: if there is no such size, colour or shape.
    """

    size: str
    colour: str
    shape: str

    def __post_init__(self) -> None:
        _known([self.size], SIZES, "size")
        _known([self.colour], tuple(COLOURS), "colour")
        _known([self.shape], SHAPES, "shape")

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption says.

    Args:
        first: the only thing, or the one that is named first.
        place: one of PLACES for one thing, one of RELATIONS for two.
        second: the other thing, or None.

    Raises:
        UnknownName: if the place is none for this number of things.
    """

    first: Thing
    place: str
    second: Thing | None = None

    def __post_init__(self) -> None:
        kind, table = ("place", PLACES) if self.second is None else ("relation", RELATIONS)
        _known([self.place], table, kind)

    def __str__(self) -> str:
        return f"{self.first} {self.place}" + ("" if self.second is None else f" {self.second}")

    def canonical(self) -> Scene:
        """Name the left or the upper one of two things first; scenes of the same pictures become equal."""
        if self.second is None or self.place in ("left of", "above"):
            return self
        return Scene(self.second, _OPPOSITE[self.place], self.first)


def _words() -> tuple[str, ...]:
    """All words of all captions, each once, in a fixed order."""
    phrases = ("a", *SIZES, *COLOURS, *SHAPES, *PLACES, *RELATIONS)
    return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


VOCABULARY = Vocabulary(_words(), 10)
_THING = 4  # words of "a small red circle"


def parse_caption(caption: str) -> Scene:
    """Read a caption.

    Args:
        caption: as ``str(scene)`` writes it; capitals and wider spaces do not matter.

    Returns:
        What it says.

    Raises:
        UnknownName: if a word occurs in no caption, or a phrase is none; the message names the nearest one.
        ConfigError: if the caption is empty, too long or not built like a caption.
    """
    VOCABULARY.encode([caption])
    words = caption.lower().split()
    first, rest = _thing(words[:_THING], caption), words[_THING:]
    if "a" not in rest:
        return Scene(first, _known(rest, PLACES, "place"))
    begin = rest.index("a")
    return Scene(first, _known(rest[:begin], RELATIONS, "relation"), _thing(rest[begin:], caption))


def _known(words: Sequence[str], phrases: Sequence[str], kind: str) -> str:
    return choose(" ".join(words), {phrase: phrase for phrase in phrases}, kind)


def _thing(words: Sequence[str], caption: str) -> Thing:
    if len(words) != _THING or words[0] != "a":
        raise ConfigError(
            f"{' '.join(words)!r} in the caption {caption!r}",
            "A thing is 'a', a size, a colour and a shape, then a place, or a relation and another thing",
            "Write for instance 'a small red circle left of a large blue square'",
        )
    return Thing(*words[1:])


@lru_cache(maxsize=1)
def scenes() -> tuple[Scene, ...]:
    """List everything that a caption can say: first all scenes of one thing, then all of two."""
    things = tuple(Thing(*parts) for parts in product(SIZES, COLOURS, SHAPES))
    alone = [Scene(thing, place) for place, thing in product(PLACES, things)]
    return (*alone, *(Scene(a, relation, b) for relation, a, b in product(RELATIONS, things, things)))
