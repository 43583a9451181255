"""What every refusal must look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from contracts.problems import batch
from fewstep.errors import (
    FewstepError,
)
from fewstep.noise import (
    EDM,
    UniformLam,
)

GRID = UniformLam(-3.0, 3.0)(EDM(), 4)
X = batch((2, 1, 3, 3))


def refuses(kind: type[FewstepError], shows: str, action: Callable[[], Any]) -> FewstepError:
    """The action raises exactly this kind; all three parts are sentences, and the message names the value."""
    with pytest.raises(kind) as hit:
        action()
    error = hit.value
    assert type(error) is kind, f"{type(error).__name__}, not {kind.__name__}"
    for part in ("given", "allowed", "todo"):
        text = getattr(error, part)
        assert len(text) > 3, f"{part} of {error!r} is {text!r}"
        assert text.rstrip(".") in str(error), f"{part} is not in the message"
    assert shows in str(error), f"the message does not name {shows!r}: {error}"
    return error
