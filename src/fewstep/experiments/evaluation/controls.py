"""Controls of the two-sample test, kept beside the summaries of their reference.

They are made of real images alone, so every model that is held against the same reference shares them. Their file is
named by what they depend on and says it again inside; the test itself refuses controls of other images or another
config.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from fewstep._files import output_dir, read_json, write_json
from fewstep.metrics.c2st import C2stConfig, C2stControls

__all__ = ["place_of_controls", "read_controls", "write_controls"]


def place_of_controls(cache: Path, images: str, config: C2stConfig, matched: bool) -> Path:
    """Name the file of the controls of a reference.

    Args:
        cache: folder of summaries.
        images: hash of the reference's images.
        config: how the test is done.
        matched: whether classes are matched.

    Returns:
        The file, there or not.
    """
    told = json.dumps([images, asdict(config), matched])
    return cache / "c2st" / f"{hashlib.sha256(told.encode()).hexdigest()[:12]}.json"


def read_controls(path: Path) -> C2stControls | None:
    """Read controls; None if they were not made yet, DataError or CheckpointError if the file is damaged."""
    return C2stControls.from_json(read_json(path)) if path.exists() else None


def write_controls(path: Path, controls: C2stControls) -> None:
    """Write controls, making their folder; OutputError if that cannot be."""
    output_dir(path.parent)
    write_json(path, controls.to_json())
