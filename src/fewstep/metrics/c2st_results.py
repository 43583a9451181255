"""What the two-sample test is told, and what it says: config, trials, controls, result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.errors import ConfigError, DataError
from fewstep.metrics.estimate import Estimate

__all__ = ["C2stConfig", "C2stControls", "C2stProgress", "C2stResult", "C2stTrial"]

_NOISE_LEAST = 0.95


@dataclass(frozen=True)
class C2stConfig:
    """How the test is done; two numbers compare only if theirs agree.

    Args:
        n: most images per side; half of them are held out.
        epochs: passes over the training half.
        batch_size: images per step; a last, smaller batch is left out.
        lr: largest learning rate of the one-cycle schedule.
        width: channels of the first convolution.
        seeds: of the initial weights and the order of the images; the highest accuracy counts.
        split_seed: of all random choices of images, and of the control's noise.
    """

    n: int = 5000
    epochs: int = 8
    batch_size: int = 64
    lr: float = 2e-3
    width: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)
    split_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train anything."""
        for name in ("n", "epochs", "batch_size", "lr", "width"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}", f"{name} is positive", f"Raise {name} above 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds}", "At least one seed, each once", "Pass seeds=(0, 1, 2)")


@dataclass(frozen=True)
class C2stTrial:
    """What one pair of sets gave.

    Args:
        accuracy: the highest accuracy of all seeds on the held-out halves, with its interval.
        accuracies: the accuracy of each seed.
        n: images per side that were compared, half of them held out.
    """

    accuracy: Estimate
    accuracies: tuple[float, ...]
    n: int

    def to_json(self) -> dict[str, Any]:
        """Turn into what JSON can hold."""
        return {"accuracy": self.accuracy.to_json(), "accuracies": list(self.accuracies), "n": self.n}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> C2stTrial:
        """Make a trial from what :meth:`to_json` gave; KeyError, TypeError or DataError if it is something else."""
        return cls(Estimate.from_json(content["accuracy"]), tuple(content["accuracies"]), content["n"])


@dataclass(frozen=True)
class C2stControls:
    """What the test says of real images alone.

    Args:
        noise: real images with noise of sd 4/255 against other real images.
        real: real images against other real images.
        config: how it was done.
        images: fingerprint of the real images and their labels.
    """

    noise: C2stTrial
    real: C2stTrial
    config: C2stConfig
    images: str

    @property
    def why(self) -> str:
        """What failed, or an empty string."""
        noise, real, failed = self.noise.accuracy, self.real.accuracy, []
        if noise.value < _NOISE_LEAST:
            failed.append(f"the classifier finds noise of sd 4/255 with accuracy {noise}, below {_NOISE_LEAST}")
        if real.low is None or real.high is None or not real.low <= 0.5 <= real.high:
            failed.append(f"it tells real from real images with accuracy {real}, which leaves out 0.5")
        return "; ".join(failed)

    def to_json(self) -> dict[str, Any]:
        """Turn into what JSON can hold; :meth:`from_json` is the way back."""
        return {
            "noise": self.noise.to_json(),
            "real": self.real.to_json(),
            "config": asdict(self.config) | {"seeds": list(self.config.seeds)},
            "images": self.images,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> C2stControls:
        """Make controls from what :meth:`to_json` gave.

        Args:
            content: "noise", "real", "config" and "images".

        Returns:
            The controls.

        Raises:
            DataError: if it is something else.
        """
        try:
            config = C2stConfig(**{**content["config"], "seeds": tuple(content["config"]["seeds"])})
            noise, real = (C2stTrial.from_json(content[name]) for name in ("noise", "real"))
            return cls(noise, real, config, str(content["images"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"Controls of a two-sample test that cannot be read ({type(error).__name__}: {error})",
                "They are what this version of fewstep wrote, unchanged",
                "Remove the file; they will be made again",
            ) from error


@dataclass(frozen=True)
class C2stResult:
    """The outcome of the whole test.

    Args:
        controls: what the test says of real images alone.
        trial: generated against real images, or None if the controls failed and the number is void.
    """

    controls: C2stControls
    trial: C2stTrial | None

    @property
    def valid(self) -> bool:
        """Whether there is a number."""
        return self.trial is not None

    @property
    def why(self) -> str:
        """Why the number is void, or an empty string."""
        return self.controls.why

    @property
    def accuracy(self) -> Estimate | None:
        """Accuracy of the best classifier with its interval, or None where it is void."""
        return self.trial.accuracy if self.trial else None

    def to_json(self) -> dict[str, Any]:
        """Turn into what JSON can hold; a void result has no part "generated"."""
        generated = {"generated": self.trial.to_json()} if self.trial else {}
        return {"valid": self.valid, "why": self.why, **self.controls.to_json(), **generated}


@dataclass(frozen=True)
class C2stProgress:
    """What one epoch reports.

    Args:
        part: "noise", "real" or "generated".
        seed: of this classifier.
        epoch: its finished epochs, from 1 to those of the config.
        loss: mean cross-entropy of the epoch, nats.
    """

    part: str
    seed: int
    epoch: int
    loss: float
