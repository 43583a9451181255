"""A case to judge, and what is known about families of models: what their weights were trained with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewstep.adapters.diffusers_config import explicit
from fewstep.adapters.doctor.pipelines import Habits
from fewstep.adapters.doctor.runs import Run, samples_flow, terminal_angle
from fewstep.adapters.doctor.subject import Subject

__all__ = ["BETAS", "FLOWS", "RAMPS", "Case", "again", "called", "few", "ours", "trailing"]

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion 1, 2 and XL
_ONE_MODEL = ("LCMScheduler", "TCDScheduler", "SCMScheduler", "FlowMatchLCMScheduler")  # made for distilled weights
_NAMES = re.compile(
    r"(?<![a-z\d])(turbo|lightning|hyper-?sd(?:xl)?|schnell|lcm|tcd|dmd2?|sprint|distill(?:ed)?|[1-8]-?steps?)(?![a-z])",
    re.IGNORECASE,
)
_KEEPS_GUIDANCE = re.compile(r"(?<![a-z])cfg(?![a-z])", re.IGNORECASE)  # some distilled weights are made to be guided
# Networks of diffusers whose weights are flows. PixArt, DiT, HunyuanDiT, CogVideoX, CogView3 and Latte are not.
FLOWS = (
    "SD3", "Flux", "Sana", "AuraFlow", "Wan", "HunyuanVideo", "HunyuanImage", "LTX", "Lumina2", "CogView4", "QwenImage",
    "ZImage", "Chroma", "HiDream", "Mochi", "OmniGen", "Bria", "SkyReels", "LongCat", "Ovis", "Kandinsky5",
)  # fmt: skip
RAMPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


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
        width = known.get("cross_attention_dim")
        return known.get("in_channels") in (4, 9) and known.get("out_channels", 4) == 4 and width in (768, 1024, 2048)

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
        known = self.subject.network
        by_class = [self.subject.scheduler_name] if self.subject.scheduler_name in _ONE_MODEL else []
        chain = [f"a chain of {', '.join(self.subject.chain)} steps"] if self.subject.chain else []
        by_part = ["time_cond_proj_dim in the network"] if known.get("time_cond_proj_dim") else []
        named = [f"{found[0]!r} in the name {name!r}" for name in self.subject.names if (found := _NAMES.search(name))]
        return (*by_class, *chain, *by_part, *named)

    @property
    def keeps_guidance(self) -> bool:
        """Whether its name says that distillation left room for guidance."""
        return any(_KEEPS_GUIDANCE.search(name) for name in self.subject.names)


def few(numbers: Sequence[float], digits: int = 4) -> str:
    """Write numbers down, the middle of many left out."""
    said = [f"{number:.{digits}g}" for number in numbers]
    return ", ".join(said if len(said) <= 12 else [*said[:5], "...", *said[-3:]])


def again(**changes: Any) -> str:
    """The line that makes the scheduler anew with other options."""
    said = "".join(f", {name}={value!r}" for name, value in changes.items())
    return f"pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config{said})"


def called(**arguments: Any) -> str:
    """The line that calls the pipeline with other arguments."""
    return f"pipe(prompt, {', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def ours() -> str:
    """The line that takes our scheduler."""
    return (
        "from fewstep.schedulers import EVODiffScheduler; "
        "pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)"
    )


def trailing(case: Case) -> str:
    """The line after which the calls are spread evenly from the noisiest level, none wasted at the clean end."""
    n = case.run.steps
    if "timestep_spacing" in case.config:
        ramps = {name: False for name in RAMPS if case.config.get(name)}
        return again(timestep_spacing="trailing", **ramps)
    passed = case.habits.takes_sigmas or not case.habits.known
    taken = "sigmas" in inspect.signature(case.subject.scheduler.set_timesteps).parameters
    if case.flow and passed and taken:
        return called(num_inference_steps=n, sigmas=[round(1 - i / n, 4) for i in range(n)])
    return ours()
