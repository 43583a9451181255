r"""The half of a scheduler that knows configurations, levels and noise; :mod:`fewstep.adapters.scheduler_shell` steps.

Three flags of DPM-Solver++ for its last steps (``lower_order_final``, ``euler_at_final``, ``final_sigmas_type``)
answer one question; here the rules themselves are finite up to sigma = 0, and only the last of them, which says where a
run ends, does anything. The others are kept, so that a configuration survives the way to a stock scheduler and back.
"""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep._tensor import expand
from fewstep.adapters.diffusers_config import Described, described, explicit, is_flow, need_diffusers
from fewstep.adapters.diffusers_levels import Asked, Visited, visited
from fewstep.adapters.diffusers_network import trained_levels
from fewstep.errors import ConfigError, UnknownName, choose
from fewstep.noise import NoiseLevel, perturb

need_diffusers()

from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_utils import (  # noqa: E402
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)
from diffusers.utils import logging  # noqa: E402

__all__ = ["SchedulerLevels", "SchedulerMixin", "SchedulerOutput"]

logger = logging.get_logger(__name__)

# What siblings may have written, and what it is called here. None of it changes the rule.
_ALGORITHMS = dict.fromkeys(("dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++", "deis"), "dpmsolver++")
_SOLVER_TYPES = dict.fromkeys(("midpoint", "heun", "logrho", "bh1", "bh2"), "midpoint")
# Options that are no matter of taste.
_TRAINED = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "use_flow_sigmas", "flow_shift", "shift"),
)
_MISSPELT = 0.8  # how alike an unknown option and a known one are, for the one to be taken for a slip


class SchedulerLevels(SchedulerMixin, ConfigMixin, ABC):  # type: ignore[misc]  # diffusers has no types
    """Configuration, levels and noise of a scheduler; see :class:`fewstep.schedulers.EVODiffScheduler`."""

    _compatibles = [*(kind.name for kind in KarrasDiffusionSchedulers), "FlowMatchEulerDiscreteScheduler"]  # noqa: RUF012
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift: float = 1.0,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        self._normalise()
        self._known: Described = described(self._said)
        self._check()
        bar = getattr(self._known.schedule, "alphas_cumprod", ())
        self.alphas_cumprod = torch.tensor(bar, dtype=torch.float32)  # of a flow, which has none, these are empty
        self.alphas = torch.tensor([after / before for before, after in pairwise((1.0, *bar))], dtype=torch.float32)
        self.betas = 1 - self.alphas
        self.num_inference_steps: int | None = None
        # Before set_timesteps, as training scripts expect: all levels that the network was trained at.
        every = {**self._said, "use_dynamic_shifting": False} if self._known.flow else {}
        levels = visited(every, self._known, Asked(len(bar) or num_train_timesteps))
        self._visit(levels._replace(sigmas=levels.sigmas[:-1]), None)  # nothing was trained at clean data

    @abstractmethod
    def _check(self) -> None:
        """Read what the rule needs from the configuration, and refuse what it cannot use."""

    @abstractmethod
    def _levels(self, asked: Asked) -> Visited:
        """The levels of a run."""

    # Configuration

    @property
    def _said(self) -> Any:
        """The configuration; its keys are also its attributes."""
        return self.config

    def _register(self, **values: Any) -> None:
        self.register_to_config(**values)  # type: ignore[no-untyped-call]

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make the scheduler from the configuration of another one; a flow-matching scheduler's becomes a flow's here.

        Args:
            config: ``pipe.scheduler.config``.
            return_unused_kwargs: also return what was not understood.
            **kwargs: values to use instead of the configuration's.

        Returns:
            The scheduler.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"from_config of a {type(config).__name__}", "A configuration", "Pass pipe.scheduler.config"
            )
        known = inspect.signature(cls.__init__).parameters
        _refuse_slips(kwargs, known)
        config, said = dict(config), explicit(config)
        if is_flow(config) or is_flow(said):
            # Stock schedulers take a configuration for a flow's only if it says so twice.
            said = {"use_flow_sigmas": True, **said}
            config |= {"prediction_type": "flow_prediction", "use_flow_sigmas": said["use_flow_sigmas"]}
            shift, kwargs = _shift(config, kwargs)
            config |= {"shift": shift, "flow_shift": shift}
        # diffusers drops what the other class filled in; of what the network was trained on that would be a change.
        trained = {name for name in _TRAINED if config.get(name, known[name].default) != known[name].default}
        config["_use_default_values"] = [name for name in config.get("_use_default_values", ()) if name not in trained]
        described({**config, **kwargs})  # the constructor sees our own arguments alone, and would take it for another
        if said.get("clip_sample"):
            logger.warning(f"{cls.__name__} does not clip its estimates (clip_sample=True); thresholding=True does.")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def _normalise(self) -> None:
        """Give siblings' options the one value that they have here, and say once what is not done."""
        config, notes = self._said, []
        if config.solver_order != 2:
            notes.append(f"solver_order={config.solver_order}: the rule has one order")
        if config.algorithm_type.startswith("sde-"):
            notes.append(f"algorithm_type={config.algorithm_type!r}: the rule draws no noise")
        if config.timestep_spacing == "leading":
            notes.append(
                "timestep_spacing='leading' begins below the noisiest level, while pipelines feed it pure noise: "
                "'trailing' is used"
            )
        if notes:
            logger.warning(f"{type(self).__name__} takes another way than the configuration says. {'; '.join(notes)}.")
        self._register(
            solver_order=2,
            algorithm_type=choose(config.algorithm_type, _ALGORITHMS, "algorithm type"),
            solver_type=choose(config.solver_type, _SOLVER_TYPES, "solver type"),
            timestep_spacing="trailing" if config.timestep_spacing == "leading" else config.timestep_spacing,
        )

    # Levels

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the levels of the next run, and forget the last one.

        Args:
            num_inference_steps: number of calls.
            device: where `timesteps` go; the levels themselves stay on the host.
            timesteps: of the calls instead, noisiest first.
            sigmas: of the calls instead: sigma / alpha of a table of betas; of a flow its sigma before the shift. A 0
                at the end is the end.
            mu: shift of a flow with `use_dynamic_shifting`.

        Raises:
            ConfigError: if not exactly one of the three says what is visited, or options contradict each other.
            GridError: if the levels do not fall.
            LevelError: if they are of the wrong convention, or outside what the network knows.
        """
        self._visit(self._levels(Asked(num_inference_steps, timesteps, sigmas, mu)), device)
        self.num_inference_steps = len(self.timesteps)

    def _visit(self, levels: Visited, device: str | torch.device | None) -> None:
        self.grid, self.sigmas = levels.grid, levels.sigmas
        self.timesteps = levels.timesteps.to(device=device)
        # What a pipeline's noise is multiplied by: 1 wherever a run begins at pure noise, and on a circle.
        self.init_noise_sigma = torch.hypot(*self.grid.at(0)).item()
        self._begin_index: int | None = None
        self._step_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """Index of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, where a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later level, as image-to-image pipelines do."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """Find the step that begins at a timestep.

        Args:
            timestep: one of `timesteps`; for any other the next step below it is taken, with a warning.
            schedule_timesteps: search in these instead.

        Returns:
            Its index.
        """
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        t = float(timestep)
        there = (known == t).nonzero()
        if len(there):
            return int(there[0])
        below = (known < t).nonzero()
        index = int(below[0]) if len(below) else len(known) - 1
        logger.warning(f"Timestep {t:g} is not one of the {len(known)} that are set; step {index} is made.")
        return index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return the sample: networks of both families take it as it is."""
        return sample

    # Noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Bring data to a level: that of the next step if there is one, else that of each sample's timestep.

        Args:
            original_samples: data, shape (b, *d).
            noise: standard normal, same shape.
            timesteps: shape (b,) or (1,); what they say matters only while no run has begun and no pipeline has set
                where it begins, as in training.

        Returns:
            Noisy samples, shape and dtype of the data.

        Raises:
            LevelError: if the network knows no such timestep.
        """
        timesteps = torch.as_tensor(timesteps).reshape(-1)
        index = self._begin_index if self._step_index is None else self._step_index
        if self._begin_index is not None and index is not None:
            return perturb(original_samples, noise, self.grid.at(index))
        level = NoiseLevel(*(part.to(original_samples) for part in trained_levels(self._said, self._known, timesteps)))
        if len(timesteps) == 1:
            level = NoiseLevel(level.alpha[0], level.sigma[0])
        return perturb(original_samples, noise, level)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Do the same as :meth:`add_noise`, under the name by which pipelines of flows call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the target of v-prediction, ``alpha * noise - sigma * sample``, for training scripts."""
        level = trained_levels(self._said, self._known, torch.as_tensor(timesteps).reshape(-1))
        return expand(level.alpha, sample) * noise - expand(level.sigma, sample) * sample

    def __len__(self) -> int:
        return int(self._said.num_train_timesteps)


def _shift(config: Mapping[str, Any], typed: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """The one shift of a flow, by either of its names, one that is typed before those of the configuration."""
    names, rest = ("shift", "flow_shift"), dict(typed)
    given = [float(rest.pop(name)) for name in names if rest.get(name)]
    if len(set(given)) > 1:
        raise ConfigError(
            f"shift={given[0]:g} and flow_shift={given[1]:g}", "Two names of one number", "Give one of them"
        )
    written = [float(config[name]) for name in names if config.get(name)]
    return next(iter(given), next((shift for shift in written if shift != 1), 1.0)), rest


def _refuse_slips(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse options that are nearly one of ours; diffusers passes over what it does not know."""
    for name in given:
        near = difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT)
        if name not in known and near:
            raise UnknownName(
                f"No option {name!r} of a scheduler", "Those of its constructor", f"Did you mean {near[0]!r}?"
            )
