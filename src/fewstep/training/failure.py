"""What a step that was not finite leaves behind, so that it can be looked at and run again.

================================= ====================================================================================
nan-step-00000012.safetensors     the step's batch: "x0", and its conditions as "cond/<name>"
nan-step-00000012.json            step, player, seed, process, what was not finite, and the configuration
================================= ====================================================================================

The step's randomness follows from (seed, step, process), so the checkpoint before it and these two are the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep._files import output_dir, write_json, write_tensors
from fewstep.data import Batch

__all__ = ["write_reproduction"]


def write_reproduction(folder: str | Path, batch: Batch, facts: Mapping[str, Any]) -> Path:
    """Write the batch of a step that failed, and what is known of it.

    Args:
        folder: of the checkpoints; created if missing.
        batch: what the step saw.
        facts: as JSON holds them; "step" and "process" name the files.

    Returns:
        The JSON file; the tensors lie beside it.

    Raises:
        OutputError: if a file cannot be written.
    """
    process = f"-process-{facts['process']}" if facts["process"] else ""
    path = output_dir(folder) / f"nan-step-{facts['step']:08d}{process}.json"
    cond = {f"cond/{name}": value for name, value in (batch.cond or {}).items()}
    write_tensors(path.with_suffix(".safetensors"), {"x0": batch.x0, **cond})
    write_json(path, dict(facts))
    return path
