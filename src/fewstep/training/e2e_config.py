"""The options of a run that trains whole chains, from noise to pictures in one to eight steps.

``e2e.terms`` is a table: a term's name and its arguments, of which three belong to every term, its weight at the start
and at the end of the run and the shape of the way between. A term of weight 0 is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fewstep._chain import MOST_STEPS, are_steps
from fewstep._part import Part
from fewstep.errors import ConfigError, choose
from fewstep.losses import VIEWS
from fewstep.training.e2e_couplings import COUPLINGS, GRADIENTS
from fewstep.training.e2e_terms import known_arguments
from fewstep.training.options import arguments_of, refuse_unless

__all__ = ["E2EConfig"]


def _diversity_safe() -> dict[str, dict[str, Any]]:
    return {"energy": {"weight": 1.0}, "adversarial": {"weight": 1.0}}


@dataclass(frozen=True)
class E2EConfig:
    """The chain, how it is differentiated, and what is asked of its end.

    Args:
        init: a bundled model or a model folder whose weights and architecture are the start; empty starts anew.
        steps: lengths of the chain, one of which is drawn in every training step; one that is written twice is drawn
            twice as often.
        solver: rule of the chain.
        spacing: its grid, which begins at pure noise.
        coupling: how noise and data are paired.
        teacher: model of the couplings that need one; empty takes `init`.
        gradient: "full" (with `every` steps recomputed at a time, if above 0), "last_k", "random_k" (the last 1 to k
            steps) or "exit" (a chain cut short at random).
        microbatch: images of which the graph is kept at a time; 0 keeps all.
        draws: images per condition; 0 makes as many as the terms need.
        trainable: "all", "solver" (the chain's own levels and weights), or patterns of parameter names, with commas.
        view: how the terms look at images: "none", "clamp" or "eight_bit".
        terms: name in TERMS -> arguments.

    Raises:
        UnknownName: if a term, one of its arguments, a coupling, a view or a gradient is not known.
        ConfigError: if a value has the wrong type, or is outside its range.
    """

    init: str = ""
    steps: tuple[int, ...] = (1, 2, 4)
    solver: Part = Part("ddim")
    spacing: Part = Part("uniform_flow")
    coupling: Part = Part("independent")
    teacher: str = ""
    gradient: Part = Part("full")
    microbatch: int = 0
    draws: int = 0
    trainable: str = "all"
    view: str = "eight_bit"
    terms: Mapping[str, Mapping[str, Any]] = field(default_factory=_diversity_safe)

    def __post_init__(self) -> None:
        refuse, steps = partial(refuse_unless, group="e2e"), f"a list of whole numbers from 1 to {MOST_STEPS}"
        refuse(bool(self.steps) and are_steps(self.steps), self, "steps", f"{steps}, such as [1, 2, 4]")
        for name in ("microbatch", "draws"):
            refuse(getattr(self, name) >= 0, self, name, "a whole number, at least 0")
        choose(self.view, VIEWS, "view")
        self.coupling.build(COUPLINGS, "coupling")
        self.gradient.build(GRADIENTS, "gradient")
        object.__setattr__(self, "terms", {name: _checked(name, own) for name, own in self.terms.items()})

    @property
    def counts(self) -> tuple[int, ...]:
        """The trained numbers of steps, each once, ascending."""
        return tuple(sorted(set(self.steps)))


def _checked(name: str, own: Any) -> dict[str, Any]:
    key = f"e2e.terms.{name}"
    known = known_arguments(name)
    if not isinstance(own, Mapping):
        raise ConfigError(f"{key}={own!r}", f"{key} is a group of {', '.join(known)}", f"Write {key}.weight=1")
    return arguments_of(own, known, key)
