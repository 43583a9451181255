"""Versions of diffusers outside of the tested range, and none at all: what is wrong, and what to install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

from fewstep.adapters.diffusers_config import OLDEST, TESTED, need_diffusers
from fewstep.errors import MissingExtra

INSTALL = r"pip install 'diffusers>=0\.35,<0\.43'"


@pytest.mark.parametrize("version", ["0.34.1", "0.9.0", "0.35.0", "0.42.1", "0.43.0.dev0", "1.0.0"])
def test_versions(monkeypatch, version):
    monkeypatch.setattr(diffusers, "__version__", version)
    minor = tuple(int(part) for part in version.split(".")[:2])
    if minor < OLDEST:
        with pytest.raises(MissingExtra, match=rf"{re.escape(version)} is installed.*0\.35 to 0\.42.*{INSTALL}"):
            need_diffusers()
    elif minor > TESTED:
        with pytest.warns(UserWarning, match=rf"{re.escape(version)} is newer.*0\.35 to 0\.42.*{INSTALL}"):
            assert need_diffusers() is diffusers
    else:
        assert need_diffusers() is diffusers


def test_the_range_is_that_of_the_extra():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'diffusers = ["diffusers>={OLDEST[0]}.{OLDEST[1]}"' in text


def test_without_diffusers_every_way_in_says_what_to_install(tmp_path):
    """And the core, `wrap` and k-diffusion's functions do without: a network that is there was made by diffusers."""
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    code = f"""
import importlib, sys
sys.modules["diffusers"] = None
import fewstep, fewstep.adapters.kdiffusion
from fewstep.adapters.doctor import examine
from fewstep.experiments.export import pipeline_of
fewstep.wrap
for way in (
    lambda: importlib.import_module("fewstep.schedulers"),
    lambda: importlib.import_module("fewstep.pipelines"),
    lambda: pipeline_of(fewstep.load_model("mnist")),
    lambda: examine({str(tmp_path)!r}),
):
    try:
        way()
    except fewstep.errors.MissingExtra as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'fewstep[diffusers]'") == 4, done.stdout
