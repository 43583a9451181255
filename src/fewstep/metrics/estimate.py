"""Numbers with intervals: delete-a-group jackknife, bootstrap of a mean, Student's t over runs.

A number without an interval cannot be compared with another one, so every metric returns an :class:`Estimate`. The
interval is always for 95 %, and `how` says what was varied: groups of images (sampling error of one generator run),
or whole runs (sampling error and seeds together).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ConfigError, DataError, NonFiniteError, ShapeError

__all__ = ["GROUPS", "Estimate", "bootstrap_mean", "jackknife", "over_seeds", "t_quantile"]

GROUPS = 10  # of images for the jackknife: nine degrees of freedom, and ten evaluations of a metric

_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Args:
        value: the number.
        low: lower end of the 95 % interval, or None where no interval can be had.
        high: upper end, or None with `low`.
        how: where the interval comes from, for instance "jackknife over 10 groups, 95 %", or "none".

    Raises:
        NonFiniteError: if a number is NaN or infinite.
        ConfigError: if one end is missing, or the low end lies above the high one.
    """

    value: float
    low: float | None = None
    high: float | None = None
    how: str = "none"

    def __post_init__(self) -> None:
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        if not all(math.isfinite(number) for number in numbers):
            raise NonFiniteError(
                f"An estimate of {self.value} in [{self.low}, {self.high}]",
                "A number and the ends of its interval are finite",
                "Leave a quantity out that is undefined for this input",
            )
        if len(numbers) == 2 or (len(numbers) == 3 and numbers[1] > numbers[2]):
            raise ConfigError(
                f"An interval [{self.low}, {self.high}]", "It has two ends, low <= high, or none", "Pass both ends"
            )

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        third = (self.high - self.low) / 6
        if third == 0:
            return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        # As many decimals as show the half width with one digit, or with two if it begins with a 1 or 2.
        decimals = math.ceil(-math.log10(third))
        value, low, high = (round(number, decimals) + 0.0 for number in (self.value, self.low, self.high))
        places = max(0, decimals)
        return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"

    def to_json(self) -> dict[str, Any]:
        """Turn into what JSON can hold; :meth:`from_json` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Estimate:
        """Make an estimate from what :meth:`to_json` gave.

        Args:
            content: "value", "low", "high" and "how".

        Returns:
            The estimate.

        Raises:
            DataError: if a key is missing or unknown, or a number is none.
        """
        try:
            value, low, high = (
                None if content[key] is None else float(content[key]) for key in ("value", "low", "high")
            )
            if value is None or set(content) != {"value", "low", "high", "how"}:
                raise ValueError("the keys do not fit")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"An estimate {content!r} ({error})",
                "It has the numbers value, low and high (both may be null) and the text how",
                "Write the result again",
            ) from error
        return cls(value, low, high, str(content["how"]))


def jackknife(whole: float, left_out: Sequence[float]) -> Estimate:
    r"""Give a number an interval from its values with one group of images left out.

    .. math:: \mathrm{Var} \approx \frac{G-1}{G} \sum_g (\theta_{-g} - \bar\theta)^2, \qquad
        \theta \pm t_{G-1} \sqrt{\mathrm{Var}}

    Centred on the number itself: its bias is left in, because it belongs to the protocol (a distance of n images).

    Args:
        whole: the number over all images.
        left_out: the number without group 0, 1, ...; with fewer than two there is no interval.

    Returns:
        The number with its interval.

    Source:
        Tukey 1958; Shao and Tu 1995, Section 5.1. Departs from it in: no bias correction.
    """
    groups = len(left_out)
    how = f"jackknife over {groups} groups, 95 %"
    return _centred(whole, _spread(left_out) * (groups - 1) / math.sqrt(max(1, groups)), groups, how)


def bounded(estimate: Estimate, least: float, most: float = float("inf")) -> Estimate:
    """Cut an interval to the values that the number can have."""
    if estimate.low is None or estimate.high is None:
        return estimate
    # Both ends on both sides: rounding can leave the number itself, and then both ends, 1e-15 beyond its range.
    low, high = (min(max(least, end), most) for end in (estimate.low, estimate.high))
    return Estimate(estimate.value, low, high, estimate.how)


def over_seeds(values: Sequence[float]) -> Estimate:
    r"""Average a number over runs with unlike seeds.

    .. math:: \bar v \pm t_{m-1} \sqrt{\frac{1}{m (m-1)} \sum_i (v_i - \bar v)^2}

    Args:
        values: one number per run, at least one; with one there is no interval.

    Returns:
        The mean with its Student t interval.

    Raises:
        DataError: if there are no values.
    """
    runs = len(values)
    if runs == 0:
        raise _empty("runs")
    return _centred(math.fsum(values) / runs, _spread(values) / math.sqrt(runs), runs, f"t over {runs} seeds, 95 %")


def bootstrap_mean(values: Tensor, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Average per-sample values, with a percentile interval from resampling them.

    Args:
        values: one number per sample, shape (n,), any real dtype; with n = 1 there is no interval.
        resamples: how often n of them are drawn with replacement.
        seed: of the draws; the same values, in the same order, give the same interval.

    Returns:
        The mean with its interval.

    Raises:
        ShapeError: if the values are not of shape (n,).
        DataError: if there are none.
        ConfigError: if resamples < 40, which leaves less than one beyond each end of the interval.
    """
    if values.ndim != 1:
        raise ShapeError(f"Values of shape {tuple(values.shape)}", "They have shape (n,)", "Pass one value per sample")
    if len(values) == 0:
        raise _empty("values")
    if resamples < 40:
        raise ConfigError(f"resamples = {resamples}", "An interval needs at least 40", "Pass resamples=1000")
    rows = values.detach().to("cpu").to(torch.float64)
    if len(rows) == 1:
        return Estimate(float(rows.mean()))
    generator = torch.Generator().manual_seed(seed)
    means = [rows[torch.randint(len(rows), (len(rows),), generator=generator)].mean() for _ in range(resamples)]
    tail = (1 - _LEVEL) / 2
    low, high = torch.stack(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(float(rows.mean()), low, high, f"bootstrap, {resamples:,} resamples, 95 %")


def _centred(value: float, error: float, parts: int, how: str) -> Estimate:
    if parts < 2:
        return Estimate(value)
    half = t_quantile(parts - 1) * error
    return Estimate(value, value - half, value + half, how)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation with divisor m - 1; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_quantile(freedom: int) -> float:
    """Find the t with 95 % of Student's distribution between -t and t, by bisection of its closed form.

    Args:
        freedom: degrees of freedom, at least 1.

    Returns:
        The quantile: 12.7 for 1, 2.26 for 9, near 1.96 for many.

    Source:
        Abramowitz and Stegun 1964, Eq. 26.7.3 and 26.7.4. Departs from it in: nothing.
    """
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < _LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _t_inside(angle: float, freedom: int) -> float:
    """Probability of |t| <= sqrt(freedom) tan(angle)."""
    odd = freedom % 2
    term, total, squared = math.cos(angle) if odd else 1.0, 0.0, math.cos(angle) ** 2
    for k in range(odd + 1, freedom, 2):  # terms cos^(k-1), whose factors are k / (k + 1)
        total += term
        term *= squared * k / (k + 1)
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series


def _empty(what: str) -> DataError:
    return DataError(f"No {what}", "A mean needs at least one", "Pass the values of at least one sample or run")
