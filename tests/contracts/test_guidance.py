"""Classifier-free guidance: the formula, what w = 1 costs, and what any other scale costs, measured."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from contracts.inventory import SOLVERS_HERE, f64, gap, solvers
from contracts.problems import TwoBumps, batch, column
from fewstep.denoisers import X0, ClassifierFree, NetworkDenoiser
from fewstep.errors import ConfigError, ShapeError
from fewstep.noise import EDM, LinearFlow, NoiseLevel, UniformLam, VPLinear
from fewstep.sampling import sample

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
