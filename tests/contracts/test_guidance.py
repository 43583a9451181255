"""Guidance: the formulas, what w = 1 costs, and what any other scale costs, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.inventory import SOLVERS_HERE, f64, gap, solvers
from contracts.problems import TwoBumps, batch, column
from contracts.refusals import refuses
from fewstep.denoisers import (
    X0,
    AutoGuidance,
    ClassifierFree,
    Denoiser,
    DynamicThresholding,
    Interval,
    NetworkDenoiser,
    Rescaled,
    metered,
)
from fewstep.errors import ConfigError, ShapeError
from fewstep.noise import EDM, LinearFlow, NoiseLevel, UniformLam, VPLinear
from fewstep.sampling import sample
from fewstep.solvers import DDIM

NULL = {"label": torch.tensor([3])}
MEANS = f64([-0.8, 0.1, 0.9, 0.0])  # one per class, the last for the null class


class Counted:
    """An x0-predicting network: pulls to its class mean; counts the rows it sees and remembers the labels."""

    def __init__(self) -> None:
        self.rows, self.calls, self.labels = 0, 0, []

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        self.rows += len(x)
        self.calls += 1
        self.labels.append(cond["label"].tolist())
        assert noise_label.shape == (len(x),)
        return 0.5 * x.tanh() + MEANS[cond["label"]].reshape(-1, 1, 1, 1) + 0.1 * noise_label.reshape(-1, 1, 1, 1)


def by_hand(w: float, x: Tensor, level: NoiseLevel, label: Tensor) -> Tensor:
    """uncond + w (cond - uncond), two separate calls of the bare denoiser."""
    bare = NetworkDenoiser(Counted(), X0(), LinearFlow())
    given, nothing = bare(x, level, {"label": label}), bare(x, level, {"label": torch.full_like(label, 3)})
    return nothing + w * (given - nothing)


@pytest.mark.parametrize("w", [0.0, 1.0, 1.5, 4.0, -0.5])
def test_formula(w: float) -> None:
    x, label = batch((3, 1, 3, 3)), torch.tensor([2, 0, 1])
    for t in (0.2, [0.1, 0.5, 1.0]):
        level = LinearFlow().level(f64(t))
        network = Counted()
        got = ClassifierFree(NetworkDenoiser(network, X0(), LinearFlow()), w, NULL)(x, level, {"label": label})
        error = gap(got, by_hand(w, x, level, label))
        assert error <= 1e-14, f"w={w}, t={t}: max|a-b| = {error:.2e}"


@solvers
def test_evaluations_are_measured(name: str) -> None:
    rule, grid, label = SOLVERS_HERE[name].rule, UniformLam(-3, 3)(VPLinear(), 5), torch.tensor([0, 1, 2])
    x = batch((3, 1, 3, 3))
    for w, per_call in ((1.0, 1), (3.0, 2)):
        network = Counted()
        guided = ClassifierFree(NetworkDenoiser(network, X0(), LinearFlow()), w, NULL)
        result = sample(guided, rule, grid, x, cond={"label": label})
        assert result.nfe == rule.nfe(grid), f"{name}, w={w}: nfe {result.nfe}"
        assert result.network_evals == per_call * result.nfe, f"{name}, w={w}: {result.network_evals} evaluations"
        assert network.rows == 3 * result.network_evals, f"{name}, w={w}: the network saw {network.rows} rows"
        assert network.calls == result.nfe, "guidance makes one batch of both halves"
        nulls = sum(row.count(3) for row in network.labels)
        assert nulls == (0 if w == 1 else 3 * result.nfe), f"{name}, w={w}: {nulls} unconditional rows"


def test_plain_functions_are_counted_too() -> None:
    """A denoiser that knows of no meter is one evaluation a call; guidance around it makes two."""
    grid, cond = UniformLam(-3, 3)(VPLinear(), 4), {"label": torch.tensor([0, 1, 2])}

    def plain(x: Tensor, level: NoiseLevel, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return MEANS[cond["label"]].reshape(-1, 1, 1, 1).expand_as(x)

    def half_asleep(x: Tensor, level: NoiseLevel, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return (
            plain(x, level, cond)
            if level.sigma > 0.9
            else NetworkDenoiser(Counted(), X0(), LinearFlow())(x, level, cond)
        )

    x = batch((3, 1, 3, 3))
    for denoiser in (plain, half_asleep):
        for w, per_call in ((1.0, 1), (2.0, 2)):
            result = sample(ClassifierFree(denoiser, w, NULL), SOLVERS_HERE["heun"].rule, grid, x, cond=cond)
            assert (result.nfe, result.network_evals) == (8, 8 * per_call), (
                f"w={w}: {result.nfe}, {result.network_evals}"
            )
        assert sample(denoiser, SOLVERS_HERE["ddim"].rule, grid, x, cond=cond).network_evals == 4


def test_w_one_is_no_guidance() -> None:
    grid, cond = UniformLam(-3, 3)(EDM(), 6), {"label": torch.tensor([0, 2])}
    x = batch((2, 1, 3, 3)) * 20
    bare = NetworkDenoiser(Counted(), X0(), LinearFlow())
    rule = SOLVERS_HERE["dpmpp_2m"].rule
    error = gap(
        sample(ClassifierFree(bare, 1.0, NULL), rule, grid, x, cond=cond).x, sample(bare, rule, grid, x, cond=cond).x
    )
    assert error == 0, f"max|a-b| = {error:.2e}"


def test_guided_sampling_is_the_formula_inside_the_loop() -> None:
    grid, label = UniformLam(-3, 3)(EDM(), 6), torch.tensor([0, 2])
    x = batch((2, 1, 3, 3)) * 20
    guided = ClassifierFree(NetworkDenoiser(Counted(), X0(), LinearFlow()), 2.5, NULL)
    for case in SOLVERS_HERE.values():
        got = sample(guided, case.rule, grid, x, cond={"label": label}).x
        want = sample(lambda x, level, cond: by_hand(2.5, x, level, label), case.rule, grid, x).x
        assert gap(got, want) <= 1e-12, f"{case.rule}: max|a-b| = {gap(got, want):.2e}"


def test_entries_without_a_null_row_stay() -> None:
    """Only what `uncond` names is replaced."""
    seen: list[Mapping[str, Tensor]] = []

    def denoiser(x: Tensor, level: NoiseLevel, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        seen.append(cond)
        return TwoBumps()(x, level) + column(cond["shift"], x)

    level, shift = LinearFlow().level(f64(0.5)), f64([0.1, 0.2])
    ClassifierFree(denoiser, 2.0, NULL)(batch((2, 1, 3, 3)), level, {"label": torch.tensor([0, 1]), "shift": shift})
    assert seen[0]["label"].tolist() == [0, 1, 3, 3]
    assert gap(seen[0]["shift"], torch.cat([shift, shift])) == 0


def test_gradients_flow_through_guidance() -> None:
    network = torch.nn.Linear(2, 2).double()

    def body(x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return network(x) * (1 + cond["label"].reshape(-1, 1))

    guided = ClassifierFree(NetworkDenoiser(body, X0(), LinearFlow()), 2.0, {"label": torch.tensor([1])})
    x = batch((2, 2)).requires_grad_(True)
    level = LinearFlow().level(f64(0.5))
    # D = D0 + 2 (Dc - D0) with Dc = net, D0 = 2 net: D = 0 * net.
    out = guided(x, level, {"label": torch.tensor([0, 0])})
    assert gap(out, torch.zeros_like(out)) <= 1e-15
    out = guided(x, level, {"label": torch.tensor([4, 4])})  # 5 net and 2 net: 8 net
    (grad,) = torch.autograd.grad(out.sum(), x)
    want = 8 * network.weight.sum(0).detach().expand(2, 2)
    assert gap(grad, want) <= 1e-13, f"max|a-b| = {gap(grad, want):.2e}"


def test_bad_conditions() -> None:
    x, level = batch((2, 1, 3, 3)), LinearFlow().level(f64(0.5))
    guided = ClassifierFree(NetworkDenoiser(Counted(), X0(), LinearFlow()), 2.0, NULL)
    for cond in (None, {}, {"lable": torch.tensor([0, 1])}):
        with pytest.raises(ConfigError) as hit:
            guided(x, level, cond)
        assert "label" in hit.value.given
        assert hit.value.allowed
        assert hit.value.todo
    wide = ClassifierFree(NetworkDenoiser(Counted(), X0(), LinearFlow()), 2.0, {"label": torch.zeros(1, 2).long()})
    with pytest.raises(ShapeError) as hit:
        wide(x, level, {"label": torch.tensor([0, 1])})
    assert "(1, 2)" in hit.value.given


# Autoguidance


def level_of(kappa: float | list[float]) -> NoiseLevel:
    return EDM().level(f64(kappa))


def test_autoguidance_is_the_formula_and_counts_both_models() -> None:
    x, label, grid = batch((3, 1, 3, 3)), torch.tensor([2, 0, 1]), UniformLam(-3, 3)(VPLinear(), 5)
    for w, per_call in ((0.0, 2), (1.0, 1), (2.5, 2)):
        network = Counted()
        good, worse = NetworkDenoiser(network, X0(), LinearFlow()), TwoBumps(0.5, 0.7)
        guided = AutoGuidance(good, worse, w)
        level = LinearFlow().level(f64([0.1, 0.5, 1.0]))
        want = (1 - w) * worse(x, level) + w * good(x, level, {"label": label})
        error = gap(guided(x, level, {"label": label}), want)
        assert error <= 1e-14, f"w={w}: max|a-b| = {error:.2e}"
        result = sample(guided, DDIM(), grid, x, cond={"label": label})
        assert (result.nfe, result.network_evals) == (5, 5 * per_call), f"w={w}: {result.network_evals}"


def test_autoguidance_does_not_call_the_worse_model_for_nothing() -> None:
    def never(x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        raise AssertionError("called")

    x = batch((2, 3))
    assert gap(AutoGuidance(TwoBumps(), never, 1.0)(x, level_of(0.5)), TwoBumps()(x, level_of(0.5))) == 0


# Rescaled guidance


@pytest.mark.parametrize("mix", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (3, 5), (3, 2, 3, 2, 2)])
def test_rescaled_is_the_formula(mix: float, shape: tuple[int, ...]) -> None:
    """Transcribed in numpy, with the deviations of numpy.std."""
    x, level, good, bad = batch(shape), level_of([0.3, 0.6, 1.5]), TwoBumps(), TwoBumps(0.5, 0.7)
    given, guided = (rule(x, level).numpy() for rule in (good, AutoGuidance(good, bad, 3.0)))
    want = [mix * g * (p.std() / g.std()) + (1 - mix) * g for p, g in zip(given, guided, strict=True)]
    error = gap(Rescaled(AutoGuidance(good, bad, 3.0), mix)(x, level), torch.tensor(np.stack(want)))
    assert error <= 1e-14, f"max|a-b| = {error:.2e}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rescaled_is_that_of_diffusers() -> None:
    pytest.importorskip("diffusers", reason="parity needs the extra 'diffusers'")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    x, level, label = batch((3, 1, 3, 3)), level_of([0.3, 0.6, 1.5]), torch.tensor([2, 0, 1])
    bare = NetworkDenoiser(Counted(), X0(), LinearFlow())
    guided = ClassifierFree(bare, 4.0, NULL)
    want = rescale_noise_cfg(guided(x, level, {"label": label}), bare(x, level, {"label": label}), 0.7)
    error = gap(Rescaled(guided)(x, level, {"label": label}), want)
    assert error <= 1e-14, f"max|a-b| = {error:.2e}"


def test_rescaled_costs_nothing_and_keeps_the_contrast() -> None:
    x, label, grid = batch((3, 1, 3, 3)), torch.tensor([2, 0, 1]), UniformLam(-3, 3)(VPLinear(), 5)
    for w, per_call in ((1.0, 1), (3.0, 2)):
        network = Counted()
        bare = NetworkDenoiser(network, X0(), LinearFlow())
        rule = Rescaled(ClassifierFree(bare, w, NULL), mix=1.0)
        result = sample(rule, DDIM(), grid, x, cond={"label": label})
        assert (result.nfe, result.network_evals, network.calls) == (5, 5 * per_call, 5)
        got, plain = (d(x, grid.at(2), {"label": label}).flatten(1).std(1) for d in (rule, bare))
        assert gap(got, plain) <= 1e-14


class Pixels:
    """Estimates that are given, whatever x is."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, x: Tensor, level: NoiseLevel, cond: object = None) -> Tensor:
        return self.values.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_rescaled_images_without_contrast(dtype: torch.dtype) -> None:
    """No contrast to bring back: as it was. No contrast to bring it to: none is left. Never NaN, nor in gradients."""
    flat, busy = torch.full((1, 50), 0.3, dtype=f64(0).dtype), batch((1, 50))
    x, level = torch.zeros(1, 50, dtype=dtype), level_of(0.5)
    # good, bad, and how much of the guided estimate must be left; None: what the formula says
    for good, bad, left in ((flat, flat + 0.2, 1.0), (flat, busy, 0.0), (busy, busy - 0.2, None)):
        good = good.clone().requires_grad_(True)
        guidance = AutoGuidance(Pixels(good), Pixels(bad), 2.0)
        got = Rescaled(guidance, mix=1.0)(x, level)
        assert got.dtype == dtype
        assert got.isfinite().all()
        (grad,) = torch.autograd.grad(got.sum(), good)
        assert grad.isfinite().all(), f"{grad}"
        if left is not None:
            assert gap(got, left * guidance(x, level)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_image_of_one_number_has_no_contrast_in_any_precision(dtype: torch.dtype) -> None:
    """The mean of many equal numbers is rounded; what differs by that rounding is no contrast."""
    flat = torch.full((1, 3, 64, 64), 0.3, dtype=f64(0).dtype)
    guidance = AutoGuidance(Pixels(flat), Pixels(flat + 0.2), 2.0)
    x = torch.zeros(1, 3, 64, 64, dtype=dtype)
    assert gap(Rescaled(guidance, mix=1.0)(x, level_of(0.5)), guidance(x, level_of(0.5))) == 0


def test_rescaled_goes_around_guidance_alone() -> None:
    inner = AutoGuidance(TwoBumps(), TwoBumps(0.5), 2.0)
    for wrong in (TwoBumps(), Rescaled(inner), Interval(inner, TwoBumps(), 0.1, 1.0)):
        error = refuses(ConfigError, type(wrong).__name__, lambda wrong=wrong: Rescaled(wrong))
        assert "inside of Interval" in error.todo


def test_rescaled_single_numbers() -> None:
    """A sample of one number, and a batch without further axes, have no contrast."""
    for shape in ((3, 1), (3,)):
        guidance = AutoGuidance(TwoBumps(), TwoBumps(0.5), 2.0)
        x, level = batch(shape), level_of([0.3, 0.6, 1.5])
        assert gap(Rescaled(guidance)(x, level), guidance(x, level)) == 0


# Guidance in an interval


def test_interval_guides_where_the_noise_is_in_it() -> None:
    """From kappa_min, excluded, to kappa_max, included; pure noise is kappa = infinity."""
    inner, outer, x = TwoBumps(), TwoBumps(0.5), batch((2, 3))
    rule = Interval(inner, outer, 0.25, 2.0)
    for kappa, inside in ((0.2, False), (0.25, False), (0.26, True), (2.0, True), (2.1, False)):
        error = gap(rule(x, level_of(kappa)), (inner if inside else outer)(x, level_of(kappa)))
        assert error == 0, f"kappa={kappa}: max|a-b| = {error:.2e}"
    noise = NoiseLevel(f64(0.0), f64(1.0))
    assert gap(rule(x, noise), outer(x, noise)) == 0
    assert gap(Interval(inner, outer, 0.25, math.inf)(x, noise), inner(x, noise)) == 0


def test_interval_costs_one_evaluation_outside() -> None:
    x, label, grid = batch((3, 1, 3, 3)), torch.tensor([2, 0, 1]), UniformLam(-3, 3)(VPLinear(), 6)
    kappa = grid.levels.kappa[:-1]
    inside = int(((kappa > 0.3) & (kappa <= 3)).sum())
    assert 0 < inside < 6
    bare = NetworkDenoiser(Counted(), X0(), LinearFlow())
    for around in (lambda d: d, Rescaled):
        rule = Interval(around(ClassifierFree(bare, 3.0, NULL)), bare, 0.3, 3.0)
        result = sample(rule, DDIM(), grid, x, cond={"label": label})
        assert (result.nfe, result.network_evals) == (6, 6 + inside), f"{result.network_evals}"


def test_interval_of_a_mixed_batch_takes_each_sample_to_its_denoiser() -> None:
    network = Counted()
    bare = NetworkDenoiser(network, X0(), LinearFlow())
    guided = ClassifierFree(bare, 3.0, NULL)
    x, label = batch((4, 1, 4, 4)).requires_grad_(True), torch.tensor([2, 0, 1, 2])
    kappa = [5.0, 1.0, 0.1, 0.5]
    want = torch.cat(
        [
            (guided if inside else bare)(x[k : k + 1], level_of([kappa[k]]), {"label": label[k : k + 1]})
            for k, inside in enumerate([False, True, False, True])
        ]
    )
    network.rows = 0
    with metered() as meter:
        got = Interval(guided, bare, 0.3, 3.0)(x, level_of(kappa), {"label": label})
    assert gap(got, want) <= 1e-14, f"max|a-b| = {gap(got, want):.2e}"
    assert (network.rows, meter.samples) == (6, 6), "two samples of two rows, two of one"
    grads = [torch.autograd.grad((out**2).sum(), x)[0] for out in (got, want)]
    assert gap(*grads) <= 1e-13


def test_all_guidance_keeps_dtype_and_composes() -> None:
    def bumps(m: float) -> Denoiser:
        return lambda x, level, cond=None: TwoBumps(m)(x.double(), level).to(x.dtype)

    for dtype in (torch.float32, torch.bfloat16):
        x = batch((2, 1, 3, 3)).to(dtype)
        auto = AutoGuidance(bumps(0.8), bumps(0.5), 2.0)
        rule = DynamicThresholding(Interval(Rescaled(auto), bumps(0.8), 0.3, 3.0))
        for kappa in (0.1, 1.0, [0.1, 1.0]):
            assert rule(x, level_of(kappa)).dtype == dtype


def test_refused_guidance() -> None:
    d = TwoBumps()
    for scale in (math.nan, math.inf):
        refuses(ConfigError, str(scale), lambda scale=scale: ClassifierFree(d, scale, NULL))
        refuses(ConfigError, str(scale), lambda scale=scale: AutoGuidance(d, d, scale))
    for mix in (-0.1, 1.5, math.nan):
        refuses(ConfigError, f"mix={mix:g}", lambda mix=mix: Rescaled(AutoGuidance(d, d, 2.0), mix))
    for low, high in ((-1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)):
        refuses(ConfigError, f"kappa {low:g} to {high:g}", lambda low=low, high=high: Interval(d, d, low, high))
    refuses(ShapeError, "(1,)", lambda: Interval(d, d, 0.3, 3.0)(batch((2, 3)), level_of([0.5])))
