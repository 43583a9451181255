"""The command line: parse, call, print (floor 8).

Parsing comes before torch: commands import what they run when they run, so that ``fewstep --help`` answers at once
and a typing error does not wait for a framework to load.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

# Commands that move large tensors. glibc hands each freed one back to the system and faults it in again, page by page;
# with these two settings it keeps them, which makes training on a CPU many times faster. They are read when a process
# starts, so the command starts itself again, once.
_HEAVY = {"ablate", "calibrate", "compare", "convert", "demo", "evaluate", "sample", "train"}
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def _keep_memory() -> None:
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    missing = {name: value for name, value in _ALLOCATOR.items() if name not in os.environ}
    if sys.platform.startswith("linux") and asked in _HEAVY and missing and "--help" not in sys.argv:
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Run the command line; errors that fewstep raises on purpose are shown in three lines, without a traceback."""
    try:
        from fewstep.cli.app import app
    except ModuleNotFoundError as error:
        sys.exit(f"The command line needs {error.name}. Install it with: pip install 'fewstep[cli]'")
    _keep_memory()
    from fewstep.cli.shell import run

    run(app)
