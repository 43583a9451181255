"""On a GPU the host never waits for the device inside the loop: no step does, and the loop reads once, at the end.

Two things would make it wait. A value that comes back from the device (`.item()`, `bool()`) is an error on the meta
device, which has no values. A copy from the host's own memory blocks as well; a dispatch mode sees those. So both are
tested on every machine, and once more where there is a CUDA device, in its mode that makes every wait an error:

    python -m pytest -m gpu tests/contracts/test_gpu.py

Noise must then be on the device before the loop starts. SeededNoise draws on the host, so that samples do not depend
on the device, and its copy waits: with it every step of a rule that draws waits once. A test holds it to that.

Calibration may wait, but it must not mix devices; the last test calibrates there and on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contracts.inventory import SOLVERS_HERE, STOCHASTIC_HERE, gap
from contracts.problems import ENDS, Constant, TwoBumps, batch
from fewstep.calibration import Problem, Refinement, Settings, Table, fit, problem_of
from fewstep.denoisers import GaussianMixture
from fewstep.errors import LevelError
from fewstep.noise import EDM, Grid, NoiseLevel
from fewstep.sampling import SeededNoise, sample
from fewstep.solvers import SOLVERS

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # it says it is a prototype

RULES: dict[str, Callable[[], Any]] = {
    **{f"default {name}": make for name, make in SOLVERS.items()},
    **{name: (lambda case=case: case.rule) for name, case in SOLVERS_HERE.items()},
    **{name: (lambda rule=rule: rule) for name, rule in STOCHASTIC_HERE.items()},
}
SHAPE = (3, 1, 4, 4)
STEPS = 5
rules = pytest.mark.parametrize("name", RULES)
grids = pytest.mark.parametrize("end", ["finite", "finite_edm", "noise_first_zero_last"])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def grid_for(name: str, end: str) -> Grid:
    """A grid that the rule can run; EVODiff's paper variant refuses infinite lam."""
    spacing, schedule = ENDS[end]
    grid = spacing(schedule, STEPS)
    try:
        RULES[name]().init(torch.zeros(SHAPE), grid)
    except LevelError:
        pytest.skip("the rule refuses this grid")
    return grid


def by_hand(name: str, denoise: Callable[[Tensor, NoiseLevel], Tensor], grid: Grid, x: Tensor, draws: Tensor) -> Tensor:
    """`init` and `step` alone: no loop, no checks."""
    rule = RULES[name]()
    state = rule.init(x, grid)
    for i in range(grid.steps):
        x, state = rule.step(denoise, x, grid, i, state, (lambda i, like: draws[i]) if rule.stochastic else None)
    return x


@contextmanager
def no_waiting() -> Iterator[None]:
    """Every wait of the host for the device is an error inside."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class HostCopies(TorchDispatchMode):
    """Makes an error of every operation that copies from the host to the device, the device being meta here.

    Arithmetic takes a scalar tensor of the host as an argument of its kernel; the operations named here copy it.
    """

    copying = ("where", "copy_", "index", "index_put_", "_index_put_impl_", "cat", "stack")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        leaves_host = (
            name == "_to_copy" and "cpu" in devices and torch.device(kwargs.get("device") or "cpu").type != "cpu"
        )
        if leaves_host or (name in self.copying and devices == {"cpu", "meta"}):
            raise AssertionError(f"{name} copies from the host")
        return func(*args, **kwargs)


def on_meta() -> tuple[Tensor, Tensor]:
    """A start and draws that have no values."""
    return torch.empty(SHAPE, device="meta"), torch.empty(STEPS, *SHAPE, device="meta")


@rules
@grids
def test_no_step_reads_or_copies(name: str, end: str) -> None:
    grid, (x, draws) = grid_for(name, end), on_meta()
    with HostCopies():
        out = by_hand(name, lambda x, level: torch.empty_like(x), grid, x, draws)
    assert (out.shape, out.dtype, out.device.type) == (SHAPE, torch.float32, "meta")


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x: x[torch.tensor([0])],
        lambda x: torch.zeros(SHAPE).to(x),
    ],
)
def test_it_would_tell(waits: Callable[[Tensor], Any]) -> None:
    """The test above can fail: a read, and three copies, are errors there."""
    x, _ = on_meta()
    with HostCopies(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        waits(x)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun", "dpmpp_2m_sde"])
def test_the_loop_reads_at_the_end(name: str) -> None:
    """On the meta device `sample` gets through all its steps; the first thing that fails is the report at the end."""
    grid, rule, done, (x, draws) = grid_for(name, "finite"), RULES[name](), [], on_meta()
    arguments: dict[str, Any] = {"noise": lambda i, like: draws[i], "watch": lambda i, x: done.append(i)}
    with HostCopies(), pytest.raises((RuntimeError, NotImplementedError)):
        sample(lambda x, level, cond: torch.empty_like(x), rule, grid, x, **arguments)
    assert done == list(range(STEPS))


@pytest.mark.gpu
@needs_cuda
@rules
@grids
def test_no_step_waits(name: str, end: str) -> None:
    """With a denoiser whose own work waits for nothing; zero waits from the first step to the last."""
    grid = grid_for(name, end)
    x = (batch(SHAPE) * grid.at(0).sigma).float().cuda()
    draws, denoise = batch((STEPS, *SHAPE), seed=4).float().cuda(), Constant(batch(SHAPE, seed=5).float().cuda())
    by_hand(name, denoise, grid, x, draws)  # kernels are loaded once, and loading may wait
    with no_waiting():
        by_hand(name, denoise, grid, x, draws)


@pytest.mark.gpu
@needs_cuda
@rules
@pytest.mark.parametrize("end", ["finite", "noise_first_zero_last"])
def test_same_as_the_cpu(name: str, end: str) -> None:
    """The whole loop, with checks, in float32 on the device and on the host: 1e-5 of the largest number at the end.

    Not from EDM's kappa of 80: Heun's rounding alone is near 1e-5 there.
    """
    grid, rule = grid_for(name, end), RULES[name]()
    start, draws = (batch(SHAPE) * grid.at(0).sigma).float(), batch((STEPS, *SHAPE), seed=4).float()
    ends = []
    for device in ("cpu", "cuda"):
        noise = draws.to(device)
        ends.append(sample(TwoBumps(), rule, grid, start.to(device), noise=lambda i, like, z=noise: z[i]).x.cpu())
    error = gap(*ends)
    assert error <= 1e-5 * max(1.0, ends[0].abs().max().item()), f"max|a-b| = {error:.2e}"


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun", "dpmpp_2m_sde"])
def test_the_loop_waits_once(name: str) -> None:
    """`sample` in "error" mode gets through all its steps; the first thing that waits is the report at the end."""
    grid, rule, done = grid_for(name, "finite"), RULES[name](), []
    x, draws = (batch(SHAPE) * grid.at(0).sigma).float().cuda(), batch((STEPS, *SHAPE), seed=4).float().cuda()
    denoise = Constant(batch(SHAPE, seed=5).float().cuda())
    arguments: dict[str, Any] = {"noise": lambda i, like: draws[i], "watch": lambda i, x: done.append(i)}
    sample(denoise, rule, grid, x, **arguments)
    done.clear()
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        sample(denoise, rule, grid, x, **arguments)
    assert done == list(range(STEPS))


@pytest.mark.gpu
@needs_cuda
def test_seeded_noise_waits() -> None:
    """It is drawn on the host and copied; whoever wants no waiting brings noise that is on the device."""
    source, x = SeededNoise((1, 2, 3)), torch.zeros(SHAPE, device="cuda")
    host = source(0, torch.zeros(SHAPE))
    assert torch.equal(source(0, x).cpu(), host)
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        source(0, x)


def calibrated_on(device: str, dtype: torch.dtype, distribution: float) -> tuple[Problem, Table]:
    """A small exact problem, whose best base is another for 4 calls than for 5, as is its best grid (for 5, gits)."""
    mixture = GaussianMixture(batch((4, 3), seed=5).to(device, dtype), 0.3)
    own = problem_of(
        mixture, EDM(), (3,), seeds=range(32), kappa_max=40.0, kappa_min=0.01, device=device, dtype=dtype, batch=20
    )
    how = Refinement(iterations=3, batch=8, distribution=distribution)
    return own, fit(own, Settings(nfe=(4, 5), teacher_steps=32, refinement=how))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
@pytest.mark.parametrize("distribution", [0.0, 0.1])
def test_calibration_in_float32_is_that_of_float64_on_the_host(device: str, distribution: float) -> None:
    """The same choices and numbers, and the rule samples the same on the device."""
    host, wanted = calibrated_on("cpu", torch.float64, distribution)
    own, table = calibrated_on(device, torch.float32, distribution)
    assert own.start.device.type == device
    for nfe, want in wanted.entries.items():
        got = table.entries[nfe]
        assert (got.base, got.grid, got.first) == (want.base, want.grid, want.first)
        assert got.kappa == pytest.approx(want.kappa, rel=1e-3)
        largest = max(abs(weight) for row in want.weights for weight in row)
        for mine, row in zip(got.weights, want.weights, strict=True):
            assert mine == pytest.approx(row, rel=1e-3, abs=1e-3 * largest)
        way = wanted.way(EDM(), nfe)
        ends = sample(host.denoisers[0], way.solver, way.grid, host.noise).x
        for kept in (table, Table.from_json(table.to_json())):  # read again, its mean is on the host
            way = kept.way(EDM(), nfe)
            x = sample(own.denoisers[0], way.solver, way.grid, own.noise).x
            assert (x.device.type, x.dtype) == (device, torch.float32)
            assert gap(x.cpu(), ends) <= 1e-3, f"{nfe} calls: max|a-b| = {gap(x.cpu(), ends):.2e}"
    assert any(entry.first for entry in table.entries.values()), "the first estimate is given somewhere"
    assert any("gits" in entry.grid for entry in table.entries.values()), "and levels come from dynamic programming"
