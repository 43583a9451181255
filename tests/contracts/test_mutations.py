"""T14: known slips, put into the solvers on purpose. Each must turn a measured number of T1, T2 or T3 red.

A suite that cannot see these slips proves nothing. The measuring functions are the very ones of the contract suites.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.inventory import SOLVERS_HERE, f64, gap
from contracts.problems import GRIDS, batch, measure_constants, measure_equivariance, measure_local_slope, measure_slope
from fewstep.noise import LinearFlow, NoiseLevel, level, perturb
from fewstep.solvers import (
    automatic,
    ddim,
    deis,
    dpmpp,
    dpmpp_2s,
    dualfast,
    evodiff_default,
    evodiff_prior,
    heun,
    ipndm,
    multistep,
    unipc,
)
from fewstep.solvers.coeffs import Level, Number
from fewstep.solvers.multistep import Row

Patch = tuple[Any, str, Any]  # module, name, what takes its place


def good(module: Any, name: str) -> Any:
    return getattr(module, name)


# The slips. Each returns the patches that make it.


def inverted_r() -> list[Patch]:
    """sigma_t / sigma_s for sigma_s / sigma_t in the decay of x."""

    def weights(here: Level, there: Level) -> tuple[Number, Number]:
        r = here.sigma / there.sigma
        return r, there.alpha - here.alpha * r

    return [(heun, "ddim_row", lambda here, there: Row(*weights(here, there)))]


def old_sigma_in_the_gain() -> list[Patch]:
    """sigma_t for sigma_s: the gain of m is computed from the level that is left."""

    def weights(here: Level, there: Level) -> tuple[Number, Number]:
        return there.sigma / here.sigma, here.alpha - there.alpha * there.sigma / here.sigma

    return [(ddim, "ddim_weights", weights)]


def swapped_alpha_and_sigma() -> list[Patch]:
    real = good(ddim, "ddim_weights")

    def swap(one: Level) -> Level:
        return Level(one.sigma, one.alpha)

    return [(ddim, "ddim_weights", lambda here, there: real(swap(here), swap(there)))]


def gain_without_alpha() -> list[Patch]:
    """1 - r instead of alpha' - alpha r: invisible where alpha is 1."""

    def weights(here: Level, there: Level) -> tuple[Number, Number]:
        return there.sigma / here.sigma, 1 - there.sigma / here.sigma

    return [(ddim, "ddim_weights", weights)]


def wrong_sign_of_h() -> list[Patch]:
    real = good(dpmpp, "midpoint_row")

    def turned(here: Level, before: Level, there: Level) -> Row:
        row = real(here, before, there)
        return row._replace(now=row.now + 2 * row.earlier[0], earlier=(-row.earlier[0],))

    return [(dpmpp, "midpoint_row", turned)]


def slope_over_the_wrong_step() -> list[Patch]:
    """r inverted in the multistep sense: the difference is divided by the next step instead of the last one."""

    def row(here: Level, before: Level, there: Level) -> Row:
        r, b = dpmpp.ddim_weights(here, there)
        half = (here.lam - before.lam) / (there.lam - here.lam) / 2
        return Row(r, b * (1 + half), (-b * half,))

    return [(dpmpp, "midpoint_row", row)]


def forgotten_half() -> list[Patch]:
    real = good(dpmpp, "midpoint_row")

    def doubled(here: Level, before: Level, there: Level) -> Row:
        row = real(here, before, there)
        return row._replace(now=row.now - row.earlier[0], earlier=(2 * row.earlier[0],))

    return [(dpmpp, "midpoint_row", doubled)]


def history_in_the_wrong_order() -> list[Patch]:
    """The engine hands the oldest estimate to the weight of the newest."""
    real = good(multistep, "combine")
    return [(multistep, "combine", lambda row, x, now, earlier=(): real(row, x, now, earlier[::-1]))]


def pair_from_its_middle() -> list[Patch]:
    """2S whose second step forgets that x has already moved."""
    real = good(dpmpp_2s, "_second_of_pair")

    def row(start: Level, middle: Level, end: Level) -> Row:
        right = real(start, middle, end)
        _, b1 = dpmpp_2s.ddim_weights(start, middle)
        return right._replace(earlier=(right.earlier[0] + right.x * b1,))

    return [(dpmpp_2s, "_second_of_pair", row)]


def trapezoid_in_the_wrong_variable() -> list[Patch]:
    """Heun's second slope weighted with sigma for kappa: right for alpha = 1, wrong elsewhere."""
    return [(heun, "_trapezoid_weight", lambda here, there, b: there.alpha * (here.sigma / there.sigma - 1) / 2)]


def logsnr_for_lam() -> list[Patch]:
    """A factor of two in the width of a step."""
    real = good(unipc, "exponential_moments")
    return [(unipc, "exponential_moments", lambda h, count: real(2 * h, count))]


def moments_without_parts() -> list[Patch]:
    """Integration by parts that forgets its factor."""

    def moments(h: float, count: int) -> list[float]:
        found = [float(-torch.expm1(-f64(h)))]
        for j in range(1, count):
            found.append(h**j - found[-1])
        return found

    return [(unipc, "exponential_moments", moments)]


def basis_through_the_wrong_points() -> list[Patch]:
    """Lagrange polynomials of levels in reverse."""
    real = good(deis, "lagrange")
    return [(deis, "lagrange", lambda points, moments: real(points, moments)[::-1])]


def kappa_for_alpha_kappa() -> list[Patch]:
    """Noise estimates weighted as if alpha were 1."""
    real = good(deis, "noise_estimate_row")
    return [
        (deis, "noise_estimate_row", lambda here, there, weights: real(here, there, [w / there.alpha for w in weights]))
    ]


def prior_without_alpha() -> list[Patch]:
    """The families' estimate as if alpha were 1: right on EDM levels, wrong elsewhere."""
    real = evodiff_prior.Family.denoised

    def wrong(self: Any, x: Tensor, at: NoiseLevel, s: Tensor) -> Tensor:
        return real(self, x, NoiseLevel(torch.ones_like(at.alpha), at.sigma), s)

    return [(evodiff_prior.Family, "denoised", wrong)]


def weights_whose_sum_is_forgotten() -> list[Patch]:
    """Least squares without the constraint that keeps constants exact."""
    real = good(evodiff_prior, "_least_squares")
    return [
        (evodiff_prior, "_least_squares", lambda known, wanted, total, ridge: real(known, wanted, 0.99 * total, ridge))
    ]


def changes_with_the_wrong_sign() -> list[Patch]:
    real = good(evodiff_default, "_of_changes")

    def turned(weights: Tensor) -> tuple[Number, list[Number]]:
        newest, changes = real(weights)
        return newest, [-c for c in changes]

    return [(evodiff_default, "_of_changes", turned)]


def changes_one_step_off() -> list[Patch]:
    """Every change gets the weight of the one before it."""
    real = good(evodiff_default, "_of_changes")

    def shifted(weights: Tensor) -> tuple[Number, list[Number]]:
        newest, changes = real(weights)
        return newest, [*changes[1:], 0.0]

    return [(evodiff_default, "_of_changes", shifted)]


def weights_of_adams_bashforth_reversed() -> list[Patch]:
    return [(ipndm, "_WEIGHTS", tuple(row[::-1] for row in good(ipndm, "_WEIGHTS")))]


def weights_that_do_not_sum_to_one() -> list[Patch]:
    rows = good(ipndm, "_WEIGHTS")
    return [(ipndm, "_WEIGHTS", (*rows[:3], (55 / 24, -59 / 24, 37 / 24, -8 / 24)))]


def noise_moved_with_the_old_ratio() -> list[Patch]:
    real = good(ipndm, "noise_estimate_row")

    def row(here: Level, there: Level, weights: list[Number]) -> Row:
        return real(here, there, weights)._replace(x=there.sigma / here.sigma)

    return [(ipndm, "noise_estimate_row", row)]


def parabola_through_the_wrong_points() -> list[Patch]:
    real = good(automatic, "lagrange")
    return [(automatic, "lagrange", lambda points, moments: real(points, moments)[::-1])]


def corrected_twice() -> list[Patch]:
    """The step taken again begins at its own end."""
    real = good(automatic, "_corrected")

    def corrected(step: Any, start: Tensor, now: Tensor, changes: Any, share: Any) -> Tensor:
        return real(step, real(step, start, now, changes, share), now, changes, share)

    return [(automatic, "_corrected", corrected)]


def share_that_does_not_fall() -> list[Patch]:
    """Mixing with the same share whatever the step: the rule converges, to first order."""
    return [(dualfast, "_ratio", lambda above, level: 0.0)]


def ratio_without_alpha() -> list[Patch]:
    return [(dualfast, "_ratio", lambda above, level: level.sigma / above.sigma)]


SLIPS: list[tuple[str, Callable[[], list[Patch]]]] = [
    ("heun", inverted_r),
    ("heun", trapezoid_in_the_wrong_variable),
    ("ddim", old_sigma_in_the_gain),
    ("ddim", swapped_alpha_and_sigma),
    ("ddim", gain_without_alpha),
    ("dpmpp_2m", wrong_sign_of_h),
    ("dpmpp_2m", slope_over_the_wrong_step),
    ("dpmpp_2m", forgotten_half),
    ("unipc_3", history_in_the_wrong_order),
    ("dpmpp_2s", pair_from_its_middle),
    ("unipc", logsnr_for_lam),
    ("unipc_3", logsnr_for_lam),
    ("unipc_3", moments_without_parts),
    ("deis", basis_through_the_wrong_points),
    ("deis_log", basis_through_the_wrong_points),
    ("deis", kappa_for_alpha_kappa),
    ("evodiff", prior_without_alpha),
    ("evodiff", weights_whose_sum_is_forgotten),
    ("evodiff", changes_with_the_wrong_sign),
    ("evodiff", changes_one_step_off),
    ("automatic", parabola_through_the_wrong_points),
    ("automatic", corrected_twice),
    ("dualfast_unipc_3", share_that_does_not_fall),
    ("dualfast_unipc_3", ratio_without_alpha),
    ("ipndm", weights_of_adams_bashforth_reversed),
    ("ipndm", weights_that_do_not_sum_to_one),
    ("ipndm", noise_moved_with_the_old_ratio),
]


def verdict(name: str) -> dict[str, tuple[float, bool]]:
    """The measured numbers of T1, T2 and T3 for a solver, and whether each is in order."""
    rule, order = SOLVERS_HERE[name].rule, min(SOLVERS_HERE[name].order, 2)
    # Two step counts tell order 1 from order 2; the unequal pair of steps sees an inverted ratio, which telescopes.
    slope = min(measure_slope(rule, grid, (32, 128))[0] for grid in ("uniform_lam", "karras"))
    if not (SOLVERS_HERE[name].uniform_kappa_only or SOLVERS_HERE[name].in_pairs):
        slope = min(slope, measure_local_slope(rule, 2.0)[0] - 1)
    turn = measure_equivariance(rule)
    still = measure_constants(rule, *GRIDS["karras"], steps=6)
    return {"T1": (slope, slope >= order - 0.15), "T2": (turn, turn <= 1e-12), "T3": (still, still <= 1e-12)}


@pytest.mark.parametrize("name", sorted({name for name, _ in SLIPS}))
def test_unharmed_solvers_pass(name: str) -> None:
    bad = {check: value for check, (value, fine) in verdict(name).items() if not fine}
    assert not bad, f"{name}: {bad}"


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@pytest.mark.parametrize(("name", "slip"), SLIPS, ids=[f"{name}-{slip.__name__}" for name, slip in SLIPS])
def test_slips_are_caught(name: str, slip: Callable[[], list[Patch]], monkeypatch: pytest.MonkeyPatch) -> None:
    evodiff_default._remembered.cache_clear()
    for module, attribute, replacement in slip():
        assert hasattr(module, attribute), f"{module.__name__}.{attribute} is gone: this mutation tests nothing"
        monkeypatch.setattr(module, attribute, replacement)
    seen = verdict(name)
    caught = [f"{check} = {value:.3g}" for check, (value, fine) in seen.items() if not fine]
    evodiff_default._remembered.cache_clear()
    print(f"{name}: {slip.__name__} caught by {', '.join(caught)}")
    assert caught, f"{name}: nobody noticed {slip.__name__}: {seen}"


def test_a_missing_expand_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent slip: a level (b,) times a batch (b, c, h, w) with b = w broadcasts over columns."""
    x0, eps = batch((3, 2, 3, 3), 1), batch((3, 2, 3, 3), 2)
    levels = LinearFlow().level(f64([0.1, 0.5, 0.9]))

    def measured() -> float:
        rows = torch.stack([(1 - t) * x0[i] + t * eps[i] for i, t in enumerate((0.1, 0.5, 0.9))])
        return gap(perturb(x0, eps, levels), rows)

    assert measured() <= 1e-15
    monkeypatch.setattr(level, "expand", lambda value, like: value)
    assert measured() > 0.1, f"the missing expand went unseen: {measured():.2e}"
