"""One classifier of the two-sample test, from fresh weights to its answers about the held-out half."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fewstep.errors import ConfigError, NonFiniteError
from fewstep.metrics.c2st_results import C2stConfig, C2stProgress, C2stTrial
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.matching import Pair
from fewstep.networks.two_sample import TwoSampleNet

__all__ = ["highest", "trial_steps"]

_LEAST_STEPS = 10


def trial_steps(
    part: str, pair: Pair, config: C2stConfig, device: str | torch.device
) -> Generator[C2stProgress, None, C2stTrial]:
    """Train one classifier per seed on a pair of sets, yielding after each epoch, and return what they gave."""
    right = []
    for seed in config.seeds:
        count = yield from _train(part, pair, config, seed, device)
        right.append(count)
    n = len(pair.held_out)
    return C2stTrial(highest(right, n), tuple(count / n for count in right), pair.n)


def _train(
    part: str, pair: Pair, config: C2stConfig, seed: int, device: str | torch.device
) -> Generator[C2stProgress, None, int]:
    """Train one classifier; return how many held-out images it puts on their side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TwoSampleNet(pair.train.shape[1], config.width).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    order, per_epoch = torch.Generator().manual_seed(seed), len(pair.train) // config.batch_size
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-2)
    steps = per_epoch * config.epochs
    if steps < _LEAST_STEPS:
        raise ConfigError(
            f"{len(pair.train)} images to learn from in {config.epochs} epochs of batches of {config.batch_size}",
            f"A classifier takes at least {_LEAST_STEPS} steps to learn anything",
            "Give more images, or a smaller batch_size",
        )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps, pct_start=0.2)
    for epoch in range(1, config.epochs + 1):
        total = torch.zeros((), device=device)
        network.train()
        for chosen in torch.split(torch.randperm(len(pair.train), generator=order), config.batch_size)[:per_epoch]:
            logits = network(_unit(pair.train[chosen], device))
            loss = binary_cross_entropy_with_logits(logits, pair.train_targets[chosen].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rate.step()
            total += loss.detach()
        yield C2stProgress(part, seed, epoch, _finite(float(total) / per_epoch, seed))
    return _right(network, pair, device)


@torch.no_grad()
def _right(network: TwoSampleNet, pair: Pair, device: str | torch.device) -> int:
    network.eval()
    logits = torch.cat([network(_unit(images, device)).cpu() for images in torch.split(pair.held_out, 250)])
    return int(((logits > 0) == (pair.held_out_targets > 0)).sum())


def highest(right: Sequence[int], n: int) -> Estimate:
    r"""Give the highest of several shares of n, all of the same n images, an interval that holds for the maximum.

    .. math:: \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p)/n + z^2/4n^2}}{1 + z^2/n}, \qquad
        z = \Phi^{-1}\!\left(1 - \tfrac{0.05}{2m}\right)

    Each of the m shares lies in its own interval at level 1 - 0.05/m, so all of them do with 95 %, and then their
    maximum lies between the largest low and the largest high end, both of which are those of the largest share.

    Args:
        right: right answers of each classifier, at least one.
        n: answers of each.

    Returns:
        The highest share with its interval.

    Source:
        Wilson 1927, for one share; Bonferroni for the maximum. Departs from it in: nothing.
    """
    best, squared = max(right) / n, NormalDist().inv_cdf(1 - 0.05 / (2 * len(right))) ** 2
    centre = best + squared / (2 * n)
    half = math.sqrt(squared * (best * (1 - best) / n + squared / (4 * n * n)))
    low, high = ((centre + side) / (1 + squared / n) for side in (-half, half))
    # Rounding can leave the end 1e-17 beyond a share of exactly 0 or 1.
    how = f"Wilson, Bonferroni over {len(right)} seeds, 95 %"
    return Estimate(best, min(low, best), max(high, best), how)


def _unit(images: Tensor, device: str | torch.device) -> Tensor:
    return images.to(device).to(torch.float32) / 127.5 - 1


def _finite(loss: float, seed: int) -> float:
    if not math.isfinite(loss):
        raise NonFiniteError(f"A loss of {loss} with classifier seed {seed}", "A loss is finite", "Lower lr")
    return loss
