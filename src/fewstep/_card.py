"""The card of a shared model: what its weights must be sampled with, and the lines of Python that do it.

The front matter is what the hub reads. An author's own front matter is kept as it is, and so is everything below the
mark; what stands between them is written anew with every save, because it must agree with the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fewstep._chain import Chain
from fewstep._model_config import ModelConfig
from fewstep._part import Part
from fewstep.noise import SCHEDULES

__all__ = ["model_card"]

_MARK = "<!-- Above: written by fewstep with every save. Below: yours. -->"
_FENCE = "---\n"
_SOLVER, _NFE = Part("evodiff"), 10  # what `fewstep sample` takes for a model that says nothing else
_KAPPA = (80.0, 0.002)
_LONG = 200
_MORE_CALLS = {"heun": "2 a step", "evodiff_paper": "1 a step and 1 more"}  # all other solvers make one call a step


def model_card(
    config: ModelConfig,
    fingerprint: str,
    parameters: int,
    calibration: Mapping[str, Any] | None = None,
    *,
    place: str = ".",
    own: str = "",
) -> str:
    """Write the card.

    Args:
        config: of the model.
        fingerprint: of the weights.
        parameters: how many there are.
        calibration: the table of calibrated solvers beside the weights, as JSON.
        place: what the example loads: a hub id, or "." for the folder that the card lies in.
        own: the card so far; its front matter, and what stands below the mark, are kept.

    Returns:
        Markdown with YAML front matter.
    """
    front, below = _kept(own)
    table = _Fitted(calibration) if calibration is not None else None
    rows = "".join(f"| {name} | {value} |\n" for name, value in _rows(config, fingerprint, parameters, table))
    head = f"# {config.name}\n\nA diffusion model for fewstep.\n"
    example = "\n".join(_example(config, table, place))
    made = f"{head}\n## Sample it with\n\n| | |\n|---|---|\n{rows}\n```python\n{example}\n```\n\n{_advice(config)}\n"
    return f"{front or _front(config, table)}\n{made}\n{_MARK}\n{below}"


def _kept(own: str) -> tuple[str, str]:
    """Front matter and own text of a card."""
    front, text = "", own
    if own.startswith(_FENCE) and f"\n{_FENCE}" in own[len(_FENCE) :]:
        inner, _, text = own[len(_FENCE) :].partition(f"\n{_FENCE}")
        front = f"{_FENCE}{inner}\n{_FENCE}"
    _, mark, below = text.partition(_MARK)
    kept = (below if mark else text).strip()
    return front, f"\n{kept}\n" if kept else ""


class _Fitted:
    """What a card says of a table, read without trust: a table that cannot be read is checked where it is used."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        entries, origin = content.get("entries"), content.get("origin")
        known = entries if isinstance(entries, Mapping) else {}
        self.nfe = sorted(int(nfe) for nfe in known if str(nfe).isdecimal())
        pair = origin.get("guidance") if isinstance(origin, Mapping) else None
        numbers = isinstance(pair, list) and len(pair) == 2 and all(type(scale) in (int, float) for scale in pair)
        self.guidance = (pair[0], pair[1]) if pair and numbers else None

    @property
    def middle(self) -> int:
        """The number of calls that an example takes: the usual one, or the nearest."""
        return min(self.nfe, key=lambda nfe: abs(nfe - _NFE))

    @property
    def span(self) -> str:
        """The guidance scales that it serves."""
        if self.guidance is None:
            return "not stated"
        low, high = self.guidance
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _front(config: ModelConfig, table: _Fitted | None) -> str:
    kinds = {"few-step": config.chain is not None, "calibrated": table is not None, "fewstep": True, "diffusion": True}
    tag = "text-to-image" if config.captions else "unconditional-image-generation"
    license_ = config.facts.get("license")
    lines = ["library_name: fewstep", f"pipeline_tag: {tag}", "tags:"]
    lines += [f"- {kind}" for kind, holds in sorted(kinds.items()) if holds]
    lines += [f"license: {json.dumps(license_)}"] if isinstance(license_, str) and license_ else []
    return f"{_FENCE}{chr(10).join(lines)}\n{_FENCE}"


def _rows(config: ModelConfig, fingerprint: str, parameters: int, table: _Fitted | None) -> list[tuple[str, str]]:
    told = "captions" if config.captions else f"{config.n_classes} classes" if config.classes else "nothing"
    rows = [
        ("weights", f"{fingerprint}, {parameters:,} parameters"),
        ("images", f"{' x '.join(map(str, config.shape))}, in [-1, 1]; told: {told}"),
        ("network", _short(config.network)),
        ("schedule", f"{_short(config.schedule)}, read as {config.label}"),
        ("prediction", str(config.prediction)),
    ]
    if config.chain is not None:
        rows += _chain_rows(config.chain)
    elif table is None or not table.nfe:
        rows += [("solver", f"{_SOLVER}, on a karras grid"), ("calls (NFE)", f"{_NFE}, or more"), *_guidance(config)]
    else:
        rows += [("guidance", table.span if config.null else "none: it is told nothing")]
    if table is not None and table.nfe:
        rows += [("calibrated", f"calls (NFE) {_either(table.nfe)}; guidance {table.span}")]
    return rows


def _short(part: Part) -> str:
    """A part in words; a table of a thousand numbers by its name."""
    said = str(part)
    return said if len(said) < _LONG else f"{part.name}, see config.json"


def _guidance(config: ModelConfig) -> list[tuple[str, str]]:
    return [("guidance", "1 is none; scales were not measured" if config.null else "none: it is told nothing")]


def _chain_rows(chain: Chain) -> list[tuple[str, str]]:
    said = "learned, with its levels" if chain.learned else f"{chain.solver}, on {chain.spacing} from pure noise"
    if chain.leaky:
        said += "; training started from data, so it is no sampler"
    calls = "as many as steps" if chain.learned else _MORE_CALLS.get(chain.solver.name, "as many as steps")
    return [
        ("trained chain", said),
        ("steps", f"{_either(chain.steps)}, and no other number"),
        ("calls (NFE)", calls),
        ("guidance", "none: the chain was trained without, or has it inside"),
    ]


def _either(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def _advice(config: ModelConfig) -> str:
    if config.chain is not None:
        return "Another solver, grid, number of steps or guidance asks the network what training never asked."
    return "On the command line, `fewstep sample --model` takes the folder or the hub id, and decides the same."


def _example(config: ModelConfig, table: _Fitted | None, place: str) -> list[str]:
    """Ten lines that load the model and sample it the way it is meant to be."""
    imports, way = _way(config, table)
    note = "  # this folder" if place == "." else ""
    needs, told = _told(config)
    return [
        *needs,
        "import fewstep",
        *imports,
        "",
        f'model = fewstep.Model.from_pretrained("{place}"){note}',
        *way,
        "x = fewstep.start_noise(grid, model.shape, seeds=range(8))",
        f"out = fewstep.sample(model.denoiser, solver, grid, x{told})",
        "print(out.x.shape, out.nfe)  # images in [-1, 1], and calls of the network per image",
    ]


def _told(config: ModelConfig) -> tuple[list[str], str]:
    """What the example has to import, and what it tells the model."""
    if config.captions is not None:
        return [], f', cond=model.cond_of_captions(["{config.captions.words[0]}"] * 8)'
    if config.classes:
        return ["import torch"], f', cond={{"label": torch.arange(8) % {config.n_classes}}}'
    return [], ""


def _way(config: ModelConfig, table: _Fitted | None) -> tuple[list[str], list[str]]:
    if config.chain is not None:
        steps = f"steps={config.chain.longest}"
        made = f"solver, grid = resolve(model.config.chain, model.denoiser.schedule, {steps})"
        return ["from fewstep.sampling import resolve"], [made]
    if table is not None and table.nfe:
        made = f"solver, grid = Table.from_json(model.calibration).way(model.denoiser.schedule, nfe={table.middle})"
        return ["from fewstep.calibration import Table"], [made]
    noisy, clean = config.schedule.build(SCHEDULES, "schedule").lam_range()
    # A limit that is the usual one but for rounding reads better as the usual one.
    first = _KAPPA[0] if -noisy > math.log(_KAPPA[0]) - 1e-9 else math.exp(-noisy)
    last = _KAPPA[1] if -clean < math.log(_KAPPA[1]) + 1e-9 else math.exp(-clean)
    grid = f"grid = Karras(kappa_max={first:.9g}, kappa_min={last:.9g})(model.denoiser.schedule, steps={_NFE})"
    imports = ["from fewstep.noise import Karras", "from fewstep.solvers import EVODiff"]
    return imports, ["solver = EVODiff()", grid]
