"""How a pipeline class of diffusers calls its scheduler and its network.

It is written nowhere but in the code of the pipeline, so that is what is read: signatures, and the source of two
methods. No pipeline is made, and no weights are looked for.
"""

from __future__ import annotations

import importlib
import inspect
import re
from functools import lru_cache
from typing import Any, NamedTuple

from fewstep.adapters.diffusers_config import need_diffusers

__all__ = ["Habits", "habits_of"]

# sigmas = np.linspace(1.0, 1 / num_inference_steps, ..), np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1], or a
# function that makes them; not in a comment.
_SIGMAS = re.compile(
    r"^[^#\n]*(linspace\(1(\.0)?, (1(\.0)? / num_inference_steps|0(\.0)?, num_inference_steps \+ 1)"
    r"|get_default_\w+_sigmas\()",
    re.MULTILINE,
)
_OURS = {"FewstepPipeline": "fewstep.pipelines"}  # a floor above: looked up by name, as diffusers itself does
_MU = re.compile(r"^[^#\n]*(\bmu=mu\b|\"mu\": mu)", re.MULTILINE)
_ROUNDS_UP = re.compile(r"min\(num_inference_steps \* strength")


class Habits(NamedTuple):
    """What a pipeline does when it is called.

    Attributes:
        known: whether diffusers has such a pipeline.
        sigmas: it passes levels from 1 to 1/n to `set_timesteps`, rather than the number of steps.
        mu: it passes mu, whether the scheduler wants it or not.
        takes_sigmas: `sigmas` is an argument of its call.
        guidance: guidance scale unless one is asked for; None if it has none, or an unknown one.
        two_scales: it calls classifier-free guidance `true_cfg_scale`; `guidance_scale` is told to the network.
        rounds_up: image-to-image makes ``ceil(steps * strength)`` calls, not ``int(steps * strength)``.
        prompt: its call takes one.
        even_euler: it passes such levels to FlowMatchEuler alone.
    """

    known: bool = False
    sigmas: bool = False
    mu: bool = False
    takes_sigmas: bool = False
    guidance: float | None = None
    two_scales: bool = False
    rounds_up: bool = False
    prompt: bool = True
    even_euler: bool = False


@lru_cache(maxsize=64)
def habits_of(name: str) -> Habits:
    """Read the habits of a pipeline class.

    Args:
        name: of the class, as in model_index.json.

    Returns:
        Its habits; those of no pipeline in particular if diffusers has none of that name.
    """
    call = _method(name, "__call__")
    if call is None:
        return Habits()
    arguments = inspect.signature(call).parameters
    source, early = inspect.getsource(call), _method(name, "get_timesteps") or _method(_sibling(name), "get_timesteps")
    scale = arguments["guidance_scale"].default if "guidance_scale" in arguments else None
    return Habits(
        known=True,
        sigmas=bool(_SIGMAS.search(source)),
        mu=bool(_MU.search(source)),
        takes_sigmas="sigmas" in arguments,
        guidance=float(scale) if isinstance(scale, int | float) else None,
        two_scales="true_cfg_scale" in arguments,
        rounds_up=early is not None and bool(_ROUNDS_UP.search(inspect.getsource(early))),
        prompt="prompt" in arguments,
        even_euler=name in _OURS,
    )


def _sibling(name: str) -> str:
    """The image-to-image pipeline of the same models."""
    return name.replace("Pipeline", "Img2ImgPipeline")


def _method(name: str, method: str) -> Any:
    """A method of a class of diffusers, with its decorators taken off; None if it, or what it needs, is missing."""
    try:
        home = importlib.import_module(_OURS[name]) if name in _OURS else need_diffusers()
        found = getattr(getattr(home, name), method)
        return inspect.unwrap(found) if inspect.isfunction(inspect.unwrap(found)) else None
    except (AttributeError, ImportError, RuntimeError):  # lazy modules turn a failed import into a RuntimeError
        return None
