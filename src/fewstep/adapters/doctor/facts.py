"""A case to judge, and what is known about families of models: what their weights were trained with."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from fewstep.adapters.diffusers_config import explicit
from fewstep.adapters.diffusers_ramps import RAMPS
from fewstep.adapters.doctor.pipelines import Habits
from fewstep.adapters.doctor.runs import Run, samples_flow, terminal_angle
from fewstep.adapters.doctor.subject import Subject

__all__ = ["BETAS", "FLOWS", "Case", "again", "called", "distilled", "even", "few", "ours", "trailing"]

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion 1, 2 and XL
_ONE_MODEL = ("LCMScheduler", "TCDScheduler", "SCMScheduler", "FlowMatchLCMScheduler")  # made for distilled weights
_NAMES = re.compile(  # a tag of many cards is "pytorch-lightning"
    r"(?<![a-z\d])(turbo|(?<!torch-)lightning|hyper-?sd(?:xl)?|schnell|lcm|tcd|dmd2?|sprint|[1-8]-?steps?)(?![a-z])",
    re.IGNORECASE,
)
_PERHAPS = re.compile(r"(?<![a-z\d])distill(?:ed)?(?![a-z])", re.IGNORECASE)  # to fewer steps, or to a smaller network
_KEEPS_GUIDANCE = re.compile(r"(?<![a-z])cfg(?![a-z])", re.IGNORECASE)  # some distilled weights are made to be guided
# Networks of diffusers whose weights are flows. PixArt, DiT, HunyuanDiT, CogVideoX, CogView3 and Latte are not.
FLOWS = (
    "SD3", "Flux", "Sana", "AuraFlow", "Wan", "HunyuanVideo", "HunyuanImage", "LTX", "Lumina2", "CogView4", "QwenImage",
    "ZImage", "Chroma", "HiDream", "Mochi", "OmniGen", "Bria", "SkyReels", "LongCat", "Ovis", "Kandinsky5",
)  # fmt: skip
_CLOSE = 1e-6
_ABOVE = 0.05  # relative: published lists of levels are rounded


@dataclass(frozen=True)
class Case:
    """A pipeline, one number of steps, and what is asked of it.

    Args:
        subject: the pipeline.
        habits: how its class calls scheduler and network.
        run: what the scheduler did.
        guidance: scale that is asked for; None leaves the pipeline's own.
        strength: of image-to-image; None for none.
        sigmas: levels that are passed; None for none.
    """

    subject: Subject
    habits: Habits
    run: Run
    guidance: float | None = None
    strength: float | None = None
    sigmas: Sequence[float] | None = None

    @property
    def config(self) -> Any:
        """Of the scheduler."""
        return self.subject.config

    @property
    def said(self) -> dict[str, Any]:
        """Of the scheduler, without what its class fills in."""
        return explicit(self.config)

    @property
    def flow(self) -> bool:
        """Whether the scheduler samples a flow."""
        return samples_flow(self.subject.scheduler)

    @property
    def network(self) -> str:
        """Class of the network."""
        return str(self.subject.network.get("_class_name") or "")

    @property
    def terminal(self) -> float | None:
        """Angle of the noisiest level, radians."""
        return terminal_angle(self.subject.scheduler)

    @property
    def latent(self) -> bool:
        """Whether the network is one of Stable Diffusion: a U-Net of its latents and text encoders."""
        known = self.subject.network
        latents = known.get("in_channels") in (4, 9) and known.get("out_channels", 4) == 4
        return self.network.startswith("UNet") and latents and known.get("cross_attention_dim") in (768, 1024, 2048)

    @property
    def scale(self) -> float | None:
        """Guidance scale that applies; None if there is none to tell."""
        return self.habits.guidance if self.guidance is None else self.guidance

    @property
    def told(self) -> str:
        """How the guidance scale is told to the network itself; empty if it is not."""
        known = self.subject.network
        if known.get("time_cond_proj_dim"):
            return f"time_cond_proj_dim={known['time_cond_proj_dim']}"
        if known.get("guidance_embeds"):
            return "guidance_embeds=True"
        return "true_cfg_scale is the other one" if self.habits.two_scales else ""

    @property
    def guided(self) -> bool:
        """Whether guidance doubles the work."""
        return self.scale is not None and self.scale > 1 and not self.told

    @cached_property
    def distilled(self) -> tuple[str, ...]:
        """What says that the weights were distilled to few steps."""
        return distilled(self.subject)

    @property
    def perhaps(self) -> list[str]:
        """What says that they were distilled, though not to what."""
        return _named(self.subject, _PERHAPS)

    @property
    def consistent(self) -> bool:
        """Whether they are of the kind of LCM: made for more steps than a few, and for a little guidance."""
        said = self.subject.scheduler_name in _ONE_MODEL or self.subject.network.get("time_cond_proj_dim")
        return bool(said) or any("lcm" in why.lower() for why in self.distilled)

    @property
    def keeps_guidance(self) -> bool:
        """Whether its name says that distillation left room for guidance."""
        return any(_KEEPS_GUIDANCE.search(name) for name in self.subject.names)

    @property
    def passes(self) -> bool:
        """Whether levels can be passed, through the pipeline to the scheduler."""
        taken = "sigmas" in inspect.signature(self.subject.scheduler.set_timesteps).parameters
        return taken and (self.habits.takes_sigmas or not self.habits.known)

    @property
    def foreign(self) -> str:
        """Why the levels that are passed are none of this model; empty if they are, or none are passed."""
        given, terminal = self.sigmas or (), self.terminal
        if any(here <= there for here, there in pairwise(given)) or any(sigma < 0 for sigma in given):
            return "Levels are 0 or above, and fall at every step"
        if not given or terminal is None:
            return ""
        if self.flow:
            kappas = "These are sigma / alpha, of a table of betas; a flow's begin at 1, which is pure noise"
            return kappas if given[0] > 1 + _CLOSE else ""
        most = math.tan(terminal)
        if given[0] <= 1 < most / 4:
            return f"These are of a flow; this model's are sigma / alpha, and begin at {most:.4g}"
        return f"This model's noisiest level is {most:.4g}" if given[0] > most * (1 + _ABOVE) else ""


def distilled(subject: Subject) -> tuple[str, ...]:
    """What says that weights were distilled to few steps."""
    by_class = [subject.scheduler_name] if subject.scheduler_name in _ONE_MODEL else []
    chain = [f"a chain of {', '.join(subject.chain)} steps"] if subject.chain else []
    by_part = ["time_cond_proj_dim in the network"] if subject.network.get("time_cond_proj_dim") else []
    return (*by_class, *chain, *by_part, *_named(subject, _NAMES))


def _named(subject: Subject, words: re.Pattern[str]) -> list[str]:
    return [f"{found[0]!r} in the name {name!r}" for name in subject.names if (found := words.search(name))]


def few(numbers: Sequence[float], digits: int = 4) -> str:
    """Write numbers down, the middle of many left out."""
    said = [f"{number:.{digits}g}" for number in numbers]
    return ", ".join(said if len(said) <= 12 else [*said[:5], "...", *said[-3:]])


def again(**changes: Any) -> str:
    """The line that makes the scheduler anew with other options."""
    said = "".join(f", {name}={value!r}" for name, value in changes.items())
    return f"pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config{said})"


def called(case: Case, **arguments: Any) -> str:
    """The line that calls the pipeline with other arguments."""
    said = [f"{name}={value!r}" for name, value in arguments.items()]
    return f"pipe({', '.join(['prompt', *said] if case.habits.prompt else said)})"


def even(case: Case) -> list[float]:
    """Levels to pass in place of as many that are wrong: 1, 1 - 1/n... of a flow, before any shift, or as kappas.

    A table's scheduler is also told the end.
    """
    n = len([sigma for sigma in case.sigmas if sigma > 0]) or 1 if case.sigmas else case.run.steps
    levels = [round(1 - i / n, 4) for i in range(n)]
    if case.flow or case.terminal is None:
        return levels
    return [round(math.tan(case.terminal), 4), *(round(level / (1 - level), 4) for level in levels[1:]), 0.0]


def ours() -> str:
    """The line that takes our scheduler."""
    return (
        "from fewstep.schedulers import EVODiffScheduler; "
        "pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)"
    )


def trailing(case: Case) -> str:
    """The line after which the calls are spread evenly from the noisiest level, none wasted at the clean end."""
    n = case.run.steps
    if case.sigmas is not None or (case.flow and "timestep_spacing" not in case.config and case.passes):
        return called(case, **({"sigmas": even(case)} if case.passes else {"num_inference_steps": n}))
    ramps = {name: False for name in RAMPS if case.config.get(name)}
    if ramps or case.config.get("timestep_spacing", "trailing") != "trailing":
        return again(timestep_spacing="trailing", **ramps)
    return ours()
