"""k-diffusion's samplers, the real ones, without what they stand among.

Of the package (MIT licence) one file is wanted, ``sampling.py``. Its ``__init__`` imports training code and with it
torchvision and a dozen other packages, so the file is found and run alone, among stand-ins for the modules that only
its other functions use.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from torch import Tensor

__all__ = ["k_diffusion_sampling"]


def _append_dims(x: Tensor, ndim: int) -> Tensor:
    """The one helper of its utils that the samplers call: axes of length 1 at the end."""
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))


def _stand_ins(folder: str) -> dict[str, ModuleType]:
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    solvers, trees = ModuleType("torchdiffeq"), ModuleType("torchsde")
    package.__path__ = [folder]
    package.utils, utils.append_dims, solvers.odeint = utils, _append_dims, None  # type: ignore[attr-defined]
    return {module.__name__: module for module in (package, utils, solvers, trees)}


@cache
def k_diffusion_sampling() -> ModuleType | None:
    """The module ``k_diffusion.sampling`` as installed, or None where it is not; sys.modules stays as it was."""
    package = find_spec("k_diffusion")  # finds a top-level package without running it
    if package is None or not package.submodule_search_locations:
        return None
    folder = package.submodule_search_locations[0]
    spec = spec_from_file_location("k_diffusion.sampling", Path(folder) / "sampling.py")
    if spec is None or spec.loader is None:
        return None
    module, stand_ins = module_from_spec(spec), _stand_ins(folder)
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        spec.loader.exec_module(module)
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    return module
