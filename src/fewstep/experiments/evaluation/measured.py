"""The metrics by name: what each computes from the summaries of one set of images, and what it needs for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import ConfigError, DataError, ProtocolError, choose
from fewstep.metrics.c2st import C2stConfig
from fewstep.metrics.diversity import rho
from fewstep.metrics.estimate import Estimate, bootstrap_mean
from fewstep.metrics.frechet_estimates import fd, fd_inf, frechet_bias, small_sample_note
from fewstep.metrics.kernels import kid, mmd_rbf
from fewstep.metrics.memorisation import memorisation
from fewstep.metrics.outputs import ProbabilitySet, ScoreSet
from fewstep.metrics.prdc import prdc
from fewstep.metrics.scores import clip_score, inception_score
from fewstep.metrics.sliced import sliced_wasserstein
from fewstep.metrics.summary import FeatureSet

__all__ = [
    "METRICS",
    "Gathered",
    "Metric",
    "c2st_parameters",
    "check_counts",
    "check_needs",
    "chosen_metrics",
    "frechet_note",
    "row_parameters",
]


@dataclass(frozen=True)
class Gathered:
    """What is known of one set of generated images in one kind of features.

    Args:
        gen: summary of the generated images.
        ref: summary of the reference; None if no metric asks for one.
        train: summary of the images that the generator learned from, or None.
        classes: class probabilities, where the features belong to a classifier.
        scores: image-text scores, where the features know texts.
        hits: 1 for each image in which a classifier recognises the class that was asked for, 0 for the others.
    """

    gen: FeatureSet
    ref: FeatureSet | None = None
    train: FeatureSet | None = None
    classes: ProbabilitySet | None = None
    scores: ScoreSet | None = None
    hits: ScoreSet | None = None

    def have(self, name: str) -> Any:
        """Give a part that a metric needs; what a metric needs was checked before the first image."""
        part = getattr(self, name)
        if part is None:
            raise DataError(f"No {name} for this metric", "What a metric needs is gathered", "Check the needs first")
        return part


Numbers = dict[str, Estimate]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        compute: from the summaries to named numbers; None for c2st, which looks at the images themselves.
        needs: of "moments", "rows", "labels", "images" of the reference; "classifier", "classes" or "texts" of the
            features; "train".
        parameters: what else its value depends on, JSON-able.
        about: one line for the help.
    """

    compute: Callable[[Gathered], Numbers] | None
    needs: tuple[str, ...]
    about: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def held_against(self) -> bool:
        """Whether the number depends on the reference."""
        return bool({"moments", "rows", "labels", "images"} & set(self.needs))


def _numbers(name: str, value: Estimate | Mapping[str, Estimate]) -> Numbers:
    return {name: value} if isinstance(value, Estimate) else dict(value)


def _against(name: str, metric: Callable[[FeatureSet, FeatureSet], Any]) -> Callable[[Gathered], Numbers]:
    return lambda given: _numbers(name, metric(given.gen, given.have("ref")))


METRICS: Mapping[str, Metric] = {
    "fd": Metric(_against("fd", fd), ("moments",), "Fréchet distance"),
    "fd_inf": Metric(_against("fd_inf", fd_inf), ("moments",), "Fréchet distance extrapolated to infinite n"),
    "kid": Metric(_against("kid", kid), ("rows",), "kernel distance (unbiased MMD, cubic kernel)", {"degree": 3}),
    "mmd": Metric(_against("mmd", mmd_rbf), ("rows",), "unbiased MMD with Gaussian kernels"),
    "prdc": Metric(_against("prdc", prdc), ("rows",), "precision, recall, density, coverage", {"k": 5}),
    "sw": Metric(
        _against("sw", sliced_wasserstein),
        ("rows",),
        "sliced Wasserstein distance",
        {"projections": 128, "directions' seed": 0, "p": 2},
    ),
    "is": Metric(
        lambda given: _numbers("is", inception_score(given.have("classes"))),
        ("classifier",),
        "Inception-like score; the Inception score in Inception's classes only",
    ),
    "class_accuracy": Metric(
        lambda given: _numbers("class_accuracy", bootstrap_mean(given.have("hits").values)),
        ("labels", "classes"),
        "share of images in which a classifier recognises the class asked for",
    ),
    "clip": Metric(lambda given: _numbers("clip", clip_score(given.have("scores"))), ("texts",), "image-text cosine"),
    "rho": Metric(_against("rho", rho), ("labels",), "spread within a class, generated over real"),
    "c2st": Metric(None, ("images",), "accuracy of a classifier that tells generated from real"),
    "memorisation": Metric(
        lambda given: _numbers("memorisation", memorisation(given.gen, given.have("train"), given.have("ref"))),
        ("rows", "train"),
        "nearest neighbours in the training set",
        {"quantile": 0.01},
    ),
}


def chosen_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Check names of metrics.

    Args:
        names: of METRICS.

    Returns:
        The names, each once.

    Raises:
        UnknownName: if one is in no table; the nearest one is suggested.
        ConfigError: if there are none.
    """
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        choose(name, METRICS, "metric")
    if not chosen:
        raise ConfigError("No metrics", f"One or more of {', '.join(METRICS)}", "Write for instance --metrics fd,prdc")
    return chosen


_WHY = {
    "moments": "moments of a reference",
    "rows": "feature vectors of the reference's images; statistics out of a file do not hold them",
    "labels": "classes on both sides, under the same names",
    "images": "the images of the reference",
    "classifier": "features that belong to a classifier",
    "classes": "features that belong to a classifier of the reference's classes",
    "texts": "captions of the images, and features that read texts (clip:PATH_OR_ID)",
    "train": "the images that the generator learned from",
}


def check_needs(metrics: Iterable[str], offers: Iterable[str], where: str) -> None:
    """Refuse, before anything is sampled, metrics that cannot be computed.

    Args:
        metrics: names.
        offers: what there is, of the words in a metric's `needs`.
        where: what offers it, for the message.

    Raises:
        ProtocolError: if a need is not met; the message says which, and which metrics could be computed.
    """
    there = set(offers)
    for name in metrics:
        missing = [need for need in METRICS[name].needs if need not in there]
        if missing:
            possible = [other for other, metric in METRICS.items() if set(metric.needs) <= there]
            raise ProtocolError(
                f"The metric {name!r} needs {_WHY[missing[0]]}; {where} does not offer that",
                f"Possible here: {', '.join(possible) or 'none'}",
                "Leave the metric out, or give what it needs",
            )


def check_counts(metrics: Iterable[str], n: int, dims: Mapping[str, int], allow_singular: bool) -> None:
    """Refuse, before anything is sampled, too few images for the dimension of the features.

    Args:
        metrics: names.
        n: images to be judged.
        dims: name of the features -> dimension.
        allow_singular: accept a Fréchet distance between singular covariances.

    Raises:
        DataError: if there are too few.
    """
    asked = set(metrics)
    for features, dim in dims.items():
        least = 2 * (dim + 1) if "fd_inf" in asked else dim + 1 if "fd" in asked and not allow_singular else 2
        if n < least:
            name = "fd_inf" if "fd_inf" in asked else "fd" if "fd" in asked else "a distribution"
            way_out = ", or --allow-singular and read the bias" if name == "fd" else ", or leave fd_inf out"
            raise DataError(
                f"{n} images for {name} in {features}, which has {dim} dimensions",
                f"At least {least} images, or the covariance has no full rank",
                f"Take more images (--n), or features of fewer dimensions{way_out}",
            )


def frechet_note(gen: FeatureSet, ref: FeatureSet, value: float) -> str:
    """Say what a small n does to a Fréchet distance; an empty string if it does nothing worth saying."""
    bias = frechet_bias(ref.moments(), gen.n, ref.n if ref.n_known else None)
    return small_sample_note(gen.n, gen.dim, bias, value) or ""


def row_parameters(metric: Metric, gen: FeatureSet, ref: FeatureSet | None) -> dict[str, Any]:
    """What else a metric's value depends on; the kept rows are a part of both sets that has its own size."""
    rows = "rows" in metric.needs and ref is not None
    return {**metric.parameters, **({"rows": f"{len(gen.rows)} against {len(ref.rows)}"} if rows and ref else {})}


def c2st_parameters(config: C2stConfig) -> dict[str, Any]:
    """Everything that the two-sample test's accuracy depends on, JSON-able."""
    return {**vars(config), "seeds": list(config.seeds)}
