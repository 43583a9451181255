r"""From a network to a denoiser: the only place where a network meets a noise level.

A network was trained on one schedule. Its denoised estimate depends on a sample only through ``x / alpha`` and
``kappa``, so :class:`NetworkDenoiser` moves whatever it is given to the network's own coordinates first,

.. math:: x' = x \, \frac{\|(\alpha', \sigma')\|}{\|(\alpha, \sigma)\|}, \quad \alpha'/\sigma' = \alpha/\sigma,

and any grid of any schedule can sample any network. The norm form is finite at both ends.

Pure noise, alpha = 0, is a legal level for every network, also for one whose own schedule ends at a finite kappa (EDM,
VPLinear). That one takes the noise z alone for its noisiest level, :math:`x' = \sigma'_{max} z`; what is missing is the
little of the data, :math:`\alpha'_{max} x_0`, that training left there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep._tensor import expand
from fewstep.denoisers.base import Cond, record_evaluation
from fewstep.denoisers.predictions import Prediction
from fewstep.errors import ConfigError, DtypeError, LevelError, choose
from fewstep.networks import Network
from fewstep.noise import LinearFlow, NoiseLevel, Schedule, ShiftedFlow, Tabulated

__all__ = ["LABELS", "Network", "NetworkDenoiser"]


def _angle(level: NoiseLevel, schedule: Schedule) -> Tensor:
    """Angle of (alpha, sigma) in units of a right angle: 0 clean, 1 pure noise; finite at both ends."""
    return torch.atan2(level.sigma, level.alpha) * (2 / torch.pi)


def _quarter_log_kappa(level: NoiseLevel, schedule: Schedule) -> Tensor:
    """EDM's c_noise, ``log(kappa) / 4``; infinite at both ends, so LevelError there."""
    if level.sigma.device.type == "cpu" and not bool(((level.alpha > 0) & (level.sigma > 0)).all()):
        raise LevelError(
            "A network that reads log(kappa) / 4 was asked at alpha = 0 or sigma = 0",
            "Its label is infinite at both ends",
            "Start the grid at a finite lam, or train the network with label='angle'",
        )
    return -level.lam / 4


def _timestep(level: NoiseLevel, schedule: Schedule) -> Tensor:
    """What networks of diffusers read: timestep k of a table, 0 to T - 1, or 1000 * sigma of a flow; float32."""
    if isinstance(schedule, Tabulated):
        # float32 before the subtraction: it rounds the clock to whole timesteps, down to timestep 0, which is then 0.0.
        # Between clean data and timestep 0 a network knows no better.
        return (schedule.t_of_lam(level.lam).float() - 1).clamp(min=0)
    if isinstance(schedule, LinearFlow | ShiftedFlow):
        return (1000 * level.sigma).float()
    raise ConfigError(
        f"label='timestep' for a network of {schedule}",
        "Timesteps belong to a table (Tabulated) or a flow (LinearFlow, ShiftedFlow)",
        "Use label='angle', or one of those schedules",
    )


# From a level of a schedule to what a network of that schedule reads.
LABELS: dict[str, Callable[[NoiseLevel, Schedule], Tensor]] = {
    "angle": _angle,
    "edm": _quarter_log_kappa,
    "timestep": _timestep,
}


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network with all that is needed to make denoised estimates of it.

    Args:
        network: (x, noise_label, cond) -> output like x; runs in the dtype of its own parameters.
        prediction: what its output means.
        schedule: the noise levels it was trained on.
        label: name in LABELS of what the network reads as its noise level.
    """

    network: Network
    prediction: Prediction
    schedule: Schedule
    label: str = "angle"

    def __post_init__(self) -> None:
        choose(self.label, LABELS, "noise label")

    def predict(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Run the network at a level of its own schedule.

        Args:
            x: noisy samples, shape (b, *d), in the schedule's own coordinates.
            level: () or (b,), of the network's schedule.
            cond: conditions, batch first.

        Returns:
            The network's output, shape and dtype of x.

        Raises:
            ShapeError: if the level is neither a scalar nor one value per sample.
            LevelError: if the label is infinite at the level.
            ConfigError: if the label is none of the network's schedule.
            DtypeError: if the network returns no tensor.
        """
        expand(level.sigma, x)  # refuses a level (1,), which .expand below would take for a scalar
        record_evaluation(x)
        label = LABELS[self.label](level, self.schedule).to(device=x.device, non_blocking=True).expand(x.shape[0])
        dtype = _parameter_dtype(self.network, x.dtype)
        inputs = self.prediction.to_input(x, level).to(dtype)
        # The label stays in float32 or better: half precision would merge neighbouring noise levels.
        label = label.to(torch.promote_types(dtype, torch.float32))
        out = self.network(inputs, label, cond)
        if not isinstance(out, Tensor):
            raise DtypeError(
                f"The network returned a {type(out).__name__}",
                "A network returns one tensor like x",
                "Wrap it in a function that returns the tensor alone",
            )
        return out.to(x.dtype)

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        """Estimate the data behind x.

        Args:
            x: noisy samples, shape (b, *d), at any level of any schedule.
            level: () or (b,).
            cond: conditions, batch first.

        Returns:
            Denoised, shape and dtype of x, data units.

        Raises:
            LevelError: if the network's schedule does not reach the level's noise; pure noise is within every reach.
        """
        own, scale = self._own_coordinates(level)
        x = x * expand(scale, x)
        return self.prediction.to_denoised(self.predict(x, own, cond), x, own)

    def _own_coordinates(self, level: NoiseLevel) -> tuple[NoiseLevel, Tensor]:
        """The level of equal kappa on the network's schedule, and the factor that moves x there."""
        t = self._time(level)
        last = self.schedule.t_range()[1]
        if t.device.type == "cpu" and bool((beyond := ~(t <= last * (1 + 1e-6))).any()):  # also where t is NaN
            raise LevelError(
                f"The network was asked for noise of kappa up to {level.kappa[beyond].max():.4g}",
                f"It was trained on {self.schedule}, which ends at time {last:g}",
                "Start the grid at pure noise, or give the spacing kappa_max= or lam_min= of the network's noisy end",
            )
        own = self.schedule.level(t)
        # Pure noise holds no data, whatever alpha the network's own noisy end has.
        alpha = torch.where(level.alpha == 0, 0.0, own.alpha)
        return own, torch.hypot(alpha, own.sigma) / torch.hypot(level.alpha, level.sigma)

    def _time(self, level: NoiseLevel) -> Tensor:
        """Time of equal lam on the network's clock, its noisy end for alpha = 0; finite gradients there too."""
        alpha, sigma = level
        noise = alpha == 0
        inside = self.schedule.t_of_lam(NoiseLevel(torch.where(noise, 1.0, alpha), sigma).lam)
        end = torch.full_like(alpha, self.schedule.t_range()[1])
        wanted = torch.is_grad_enabled() and (alpha.requires_grad or sigma.requires_grad)
        if wanted and self.schedule.lam_range()[0] == -torch.inf:
            # Through log(0) the gradient would be 0 * inf; in alpha / sigma the clock is smooth at pure noise.
            end = end + alpha / torch.where(noise, sigma, 1.0) / _ratio_per_time(self.schedule)
        return torch.where(noise, end, inside)


def _ratio_per_time(schedule: Schedule) -> float:
    """Derivative of alpha / sigma in the clock, at the noisy end."""
    t = torch.tensor(schedule.t_range()[1], dtype=torch.float64, requires_grad=True)
    alpha, sigma = schedule.level(t)
    return torch.autograd.grad(alpha / sigma, t)[0].item()


def _parameter_dtype(network: Network, default: torch.dtype) -> torch.dtype:
    if isinstance(network, nn.Module):
        return next((p.dtype for p in network.parameters()), default)
    return default
