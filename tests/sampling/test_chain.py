"""Chains: what is written down is what is sampled, from pure noise, in the trained numbers of steps only."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from contracts.inventory import SCHEDULES_HERE, gap
from contracts.problems import TwoBumps, batch
from contracts.refusals import refuses

from fewstep._chain import Chain
from fewstep._part import Part
from fewstep.errors import ConfigError, LevelError, UnknownName
from fewstep.noise import EDM, Karras, LinearFlow, Schedule, UniformFlow, UniformLam, VPLinear
from fewstep.sampling import LearnedChain, resolve, sample
from fewstep.solvers import DDIM, IPNDM, SOLVERS, EVODiff, TabulatedSolver

schedules = pytest.mark.parametrize("schedule", SCHEDULES_HERE.values(), ids=list(SCHEDULES_HERE))


@schedules
def test_the_plain_chain(schedule: Schedule) -> None:
    for steps in (1, 2, 4):
        solver, grid = resolve(Chain(), schedule, steps)
        assert solver == DDIM()
        want = UniformFlow()(schedule, steps)
        assert all(torch.equal(a, b) for a, b in zip((*grid.levels, grid.t), (*want.levels, want.t), strict=True))
    assert resolve(Chain(), schedule).grid.steps == 4
    assert resolve(Chain(steps=(1, 2)), schedule).grid.steps == 2


def test_parts_have_arguments() -> None:
    assert resolve(Chain(Part("ipndm", {"order": 2})), EDM()).solver == IPNDM(order=2)
    assert resolve(Chain(Part("evodiff")), EDM()).solver == EVODiff()
    for name, make in SOLVERS.items():
        assert resolve(Chain(Part(name)), EDM()).solver == make(), name


def test_every_chain_starts_at_pure_noise_unless_it_is_leaky() -> None:
    spacing = Part("karras", {"kappa_max": 20.0, "end": "zero"})
    plain = Karras(kappa_max=20.0, end="zero")(VPLinear(), 3)
    chain = Chain(spacing=spacing, steps=(3,))
    for leaky, first in ((False, (0.0, 1.0)), (True, (plain.levels.alpha[0].item(), plain.levels.sigma[0].item()))):
        grid = resolve(dataclasses.replace(chain, leaky=leaky), VPLinear()).grid
        assert (grid.at(0).alpha.item(), grid.at(0).sigma.item()) == first
        assert grid.levels.sigma[1:].tolist() == plain.levels.sigma[1:].tolist()


def test_a_learned_chain_samples_with_its_tables() -> None:
    torch.manual_seed(0)
    learned, z = {}, batch((2, 1, 2, 2))
    for steps in (1, 3):
        module = LearnedChain(UniformFlow()(LinearFlow(), steps))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.randn_like(parameter)
        learned[steps] = module
    chain = Chain(steps=(1, 3), learned={str(steps): module.table() for steps, module in learned.items()})
    assert Chain.from_json(json.loads(json.dumps(dataclasses.asdict(chain)))) == chain
    for steps, module in learned.items():
        solver, grid = resolve(chain, VPLinear(), steps)
        assert isinstance(solver, TabulatedSolver)
        want = sample(TwoBumps(), module.solver(), module.grid(VPLinear()), z).x
        assert gap(sample(TwoBumps(), solver, grid, z).x, want) == 0


def test_refusals_of_a_chain() -> None:
    error = refuses(ConfigError, "3 steps", lambda: resolve(Chain(), EDM(), 3))
    assert "1, 2, 4" in error.allowed
    refuses(UnknownName, "Did you mean 'ddim'", lambda: resolve(Chain(Part("dddim")), EDM()))
    refuses(UnknownName, "Did you mean 'uniform_flow'", lambda: resolve(Chain(spacing=Part("uniform_flw")), EDM()))
    refuses(UnknownName, "ordr", lambda: resolve(Chain(Part("ipndm", {"ordr": 2})), EDM()))
    refuses(ConfigError, "9", lambda: resolve(Chain(Part("ipndm", {"order": 9})), EDM()))
    refuses(LevelError, "2.99", lambda: resolve(Chain(), EDM(sigma_max=2.0)))


@pytest.mark.parametrize("steps", [(), (0,), (1, 9), (2, 1), (2, 2), (1.0,), (True,), [1, 2], 4])
def test_steps_of_a_chain(steps: object) -> None:
    error = refuses(ConfigError, repr(steps), lambda: Chain(steps=steps))  # type: ignore[arg-type]
    assert "1 to 8" in error.allowed


def test_values_of_a_chain() -> None:
    refuses(ConfigError, "'ddim'", lambda: Chain(solver="ddim"))  # type: ignore[arg-type]
    refuses(ConfigError, "leaky=1", lambda: Chain(leaky=1))  # type: ignore[arg-type]
    table = {"tau": [], "weights": []}
    for learned in ({}, {"1": table}, {1: table, 2: table, 4: table}, [table]):
        refuses(ConfigError, "Learned tables", lambda learned=learned: Chain(learned=learned))  # type: ignore[arg-type]
    everything = Chain(Part("ipndm", {"order": 2}), Part("uniform_lam", {"lam_min": -3.0}), (2, 8), leaky=True)
    assert Chain.from_json(json.loads(json.dumps(dataclasses.asdict(everything)))) == everything
    assert Chain.from_json({}) == Chain()
    assert UniformLam(-3.0)(VPLinear(), 2).levels.sigma[0] == resolve(everything, VPLinear(), 2).grid.levels.sigma[0]
