"""Evaluation: the right numbers, once, whatever was interrupted, refused or shared among processes."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep._files import output_dir
from fewstep.data import ImageData, digits, to_unit
from fewstep.data.prompts import Prompt, PromptSet
from fewstep.data.sources import folder_files
from fewstep.errors import ConfigError, DataError, FewstepError, NonFiniteError, OutputError, ProtocolError, UnknownName
from fewstep.experiments.evaluation.evaluate import Evaluation, Plan
from fewstep.experiments.evaluation.generated import Generated, file_name
from fewstep.experiments.evaluation.opened import match_images, open_subjects
from fewstep.experiments.evaluation.outcome import finish, read_results, write_outcome
from fewstep.experiments.evaluation.parts import measure_part
from fewstep.experiments.evaluation.places import labels_of
from fewstep.experiments.evaluation.prepare import prepare
from fewstep.experiments.evaluation.references import RealImages
from fewstep.experiments.evaluation.request import Request
from fewstep.experiments.evaluation.subjects import ArraySubject
from fewstep.experiments.pictures import save_pixels
from fewstep.experiments.runs import Drawn
from fewstep.features import Pixels, RandomConv
from fewstep.metrics import fd, frechet_distance, image_moments, kid
from fewstep.metrics.c2st import C2stConfig, C2stControls
from fewstep.metrics.grouping import random_rank
from fewstep.metrics.npz import write_samples, write_statistics
from fewstep.metrics.result import compare_results
from fewstep.metrics.summary import FeatureSet
from fewstep.training.classifier import ClassifierConfig, train_classifier

SHAPE, N = (1, 8, 8), 130
prepare_module = importlib.import_module("fewstep.experiments.evaluation.prepare")  # a function has its name
CLASSES = tuple("0123456789")
IMAGES = digits().images


class Fake:
    """A generator: blurred noise around a mean that depends on the class, or on the length of the prompt."""

    def __init__(self, shape=SHAPE, broken=()) -> None:
        self.shape, self.broken, self.drawn = shape, set(broken), []

    def __call__(self, seeds, asked=None) -> Drawn:
        self.drawn += list(seeds)
        images = []
        for k, seed in enumerate(seeds):
            told = 0 if asked is None else len(asked[k]) if isinstance(asked[k], str) else int(asked[k])
            noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
            images.append(0.4 * noise + 0.1 * (told % 7) - 0.3)
            if seed in self.broken:
                images[-1][0, 2, 3] = float("nan")
        return Drawn(torch.stack(images), 7, 14, 0.0)

    def describe(self):
        return {
            "kind": "fake",
            "model": "blur",
            "model_hash": "abcdefabcdef",
            "solver": "none",
            "grid": "none",
            "nfe": 7,
            "guidance": 1.0,
        }


@pytest.fixture(scope="module")
def real() -> RealImages:
    return RealImages(digits(), "all")


def subject(out, generator, n=N, seed=0, **changes) -> Generated:
    seeds = range(seed, seed + n)
    options = {"asked": torch.tensor([k % 10 for k in seeds]), "classes": CLASSES, "batch_size": 20}
    return Generated(generator, out / "images", seeds, **{**options, **changes})


def evaluation(out, generator, real, metrics=("fd", "kid", "prdc"), n=N, features=None, **changes) -> Evaluation:
    plan = Plan(metrics, out, chunk=50)
    return Evaluation([subject(out, generator, n, **changes)], features or [RandomConv(1)], plan, real)


def run(one: Evaluation):
    for _ in one.run():
        pass
    return finish(one)


def numbers(outcome) -> dict[tuple[str, str], str]:
    return {(r.name, r.protocol.measuring.features): json.dumps(r.estimate.to_json()) for r in outcome.results}


def test_the_numbers_are_those_of_the_8_bit_images(tmp_path, real):
    """Computed again by hand."""
    features, generator = RandomConv(1), Fake()
    outcome = run(evaluation(tmp_path, generator, real, features=[features, Pixels(SHAPE)]))
    assert generator.drawn == list(range(N))
    images = generator(range(N), torch.arange(N) % 10).images
    found = {(r.name, r.protocol.measuring.features): r for r in outcome.results}
    assert len(found) == 2 * 6
    for one in (features, Pixels(SHAPE)):
        expected = frechet_distance(image_moments(one, images), image_moments(one, to_unit(real.data.images)))
        assert found["fd", one.name].estimate.value == pytest.approx(expected, rel=1e-5)
        gen = FeatureSet(one.dim)
        x = (((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5) - 1
        gen.update(one(x), torch.arange(N))
        ref = FeatureSet(one.dim)
        ref.update(one(to_unit(real.data.images)), torch.arange(len(real.data)))
        for name, metric in (("fd", fd), ("kid", kid)):
            assert found[name, one.name].estimate.low == pytest.approx(metric(gen, ref).low, rel=1e-4)


def test_every_result_says_what_it_means(tmp_path, real):
    outcome = run(evaluation(tmp_path, Fake(), real, ("fd", "kid")))
    write_outcome(tmp_path, outcome, {"processor": "test"})
    again = read_results(tmp_path)
    assert list(outcome.results) == again
    for result in again:
        measuring, making = result.protocol.measuring, result.protocol.making
        assert (measuring.n, measuring.sets, measuring.rounding) == (N, 1, "8 bit")
        assert (measuring.reference.name, measuring.reference.n) == ("digits", 1797)
        assert (making.nfe, making.network_evals, making.hash) == (7, 14, "abcdefabcdef")
        assert making.seeds == f"0..{N - 1}"
        assert result.line() in (tmp_path / "results.json").read_text().replace("\\u00e9", "é")
    assert (tmp_path / "results.png").stat().st_size > 1000
    assert "independent draws of the real distribution" in again[0].note, "130 images are few"


class Stop(Exception):
    """A kill."""


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_run_that_was_killed_goes_on_and_gives_the_same_bits(tmp_path, real, chunks):
    whole = numbers(run(evaluation(tmp_path / "whole", Fake(), real)))

    class Dying(Fake):
        def __call__(self, seeds, asked=None):
            if seeds[0] >= 50 * chunks + 20:
                raise Stop
            return super().__call__(seeds, asked)

    out = tmp_path / "killed"
    with pytest.raises(Stop):
        run(evaluation(out, Dying(), real))
    assert len(list((out / "parts").iterdir())) == chunks
    generator = Fake()
    again = evaluation(out, generator, real)
    found = [report.found for report in again.run()]
    assert found == [k < chunks for k in range(3)]
    assert generator.drawn == list(range(50 * chunks + 20, N)), "what was on the disk is read back"
    assert numbers(finish(again)) == whole


def test_a_lost_part_is_made_again_from_the_images(tmp_path, real):
    whole = numbers(run(evaluation(tmp_path, Fake(), real)))
    (tmp_path / "parts" / "chunk_00001.safetensors").unlink()
    generator = Fake()
    assert numbers(run(evaluation(tmp_path, generator, real))) == whole
    assert generator.drawn == []


def test_a_picture_that_a_crash_left_empty_is_drawn_again_with_its_batch(tmp_path, real):
    whole = numbers(run(evaluation(tmp_path, Fake(), real, ("fd",))))
    (tmp_path / "images" / "000025.png").write_bytes(b"")
    (tmp_path / "parts" / "chunk_00000.safetensors").unlink()
    generator = Fake()
    assert numbers(run(evaluation(tmp_path, generator, real, ("fd",)))) == whole
    assert generator.drawn == list(range(20, 40))


def test_one_nan_among_the_features_of_an_image_is_an_error(tmp_path):
    class Overflowing:
        name, dim, resize = "overflowing", 2, "none"

        def __call__(self, images):
            rows = torch.zeros(len(images), 2)
            rows[1, 1] = float("nan")
            return rows

    with pytest.raises(NonFiniteError, match="features overflowing of 1 images, first in 1"):
        measure_part(subject(tmp_path, Fake(), 3).read(range(3)), [Overflowing()], "cpu")


def test_more_metrics_later_cost_no_image(tmp_path, real):
    run(evaluation(tmp_path, Fake(), real, ("fd",)))
    generator = Fake()
    outcome = run(evaluation(tmp_path, generator, real, ("fd", "sw", "rho", "mmd")))
    assert generator.drawn == []
    assert [r.name for r in outcome.results] == ["fd", "sw", "rho", "mmd"]


def test_other_settings_are_refused_with_what_differs(tmp_path, real):
    run(evaluation(tmp_path, Fake(), real, ("fd",)))
    with pytest.raises(ProtocolError, match="n: 130 and 100") as refusal:
        run(evaluation(tmp_path, Fake(), real, ("fd",), n=100))
    assert "features" not in refusal.value.given
    with pytest.raises(ProtocolError, match=r"features: \['random-conv"):
        run(evaluation(tmp_path, Fake(), real, ("fd",), features=[Pixels(SHAPE)]))
    with pytest.raises(ProtocolError, match="chunk: 50 and 25"):
        run(Evaluation([subject(tmp_path, Fake())], [RandomConv(1)], Plan(("fd",), tmp_path, chunk=25), real))
    with pytest.raises(ProtocolError, match=r"seeds: '0..129' and '5..134'"):
        run(evaluation(tmp_path, Fake(), real, ("fd",), seed=5))


def test_images_that_are_not_ours_are_not_taken_for_ours(tmp_path, real):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000001.png").write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match=r"images or parts but no settings\.json"):
        run(evaluation(tmp_path, Fake(), real))


def test_a_part_of_another_run_is_refused(tmp_path, real):
    run(evaluation(tmp_path / "a", Fake(), real, ("fd",)))
    run(evaluation(tmp_path / "b", Fake(), real, ("fd",), seed=5))
    shutil.copy(tmp_path / "a/parts/chunk_00000.safetensors", tmp_path / "b/parts/chunk_00000.safetensors")
    with pytest.raises(FewstepError, match="belongs to the settings"):
        run(evaluation(tmp_path / "b", Fake(), real, ("fd",), seed=5))


def test_nan_images_name_their_seeds_and_are_not_written(tmp_path, real):
    with pytest.raises(NonFiniteError, match=r"2 of 20 images of blur .* seeds 63, 66"):
        run(evaluation(tmp_path, Fake(broken=(63, 66)), real))
    assert not (tmp_path / "images" / "000063.png").exists()


def test_several_seed_sets_give_the_mean_and_its_t_interval(tmp_path, real):
    single = []
    for k in range(3):
        made = evaluation(tmp_path / str(k), Fake(), real, ("fd",), seed=k * 1_000_000)
        single.append(run(made).results[0].estimate.value)
    sets = [subject(tmp_path / "all", Fake(), seed=k * 1_000_000) for k in range(3)]
    together = run(Evaluation(sets, [RandomConv(1)], Plan(("fd",), tmp_path / "all", chunk=50), real)).results[0]
    mean = sum(single) / 3
    half = 4.302652729911275 * (sum((v - mean) ** 2 for v in single) / 2 / 3) ** 0.5
    assert together.estimate.value == pytest.approx(mean, rel=1e-9)
    assert together.estimate.high == pytest.approx(mean + half, rel=1e-6)
    assert together.protocol.measuring.sets == 3
    assert together.protocol.making.seeds == "0..129; 1000000..1000129; 2000000..2000129"


def test_real_images_have_no_distance_to_themselves_and_have_the_whole_spread(tmp_path, real):
    names = ("fd", "rho", "sw")
    made = Evaluation([ArraySubject(real.data, "digits")], [RandomConv(1)], Plan(names, tmp_path), real)
    values = {result.name: result.estimate.value for result in run(made).results}
    assert values["fd"] < 1e-6
    assert values["rho"] == pytest.approx(1, abs=1e-6)
    assert values["sw"] < 1e-5


def test_a_two_sample_test_that_fails_its_controls_is_void_not_a_number(tmp_path, real):
    """Two epochs on a hundred pictures finds no noise, so nothing may be concluded."""
    plan = Plan(("c2st",), tmp_path, c2st=C2stConfig(n=100, epochs=2, seeds=(0,), batch_size=16))
    outcome = run(Evaluation([ArraySubject(real.data, "digits")] * 2, [], plan, real))
    assert outcome.results == ()
    (void,) = outcome.void
    assert void.startswith("c2st is void: the classifier finds noise")


def test_a_two_sample_test_says_how_it_was_done_and_refuses_another_way(tmp_path, real, monkeypatch):
    monkeypatch.setattr(C2stControls, "why", "")  # a test that can pass its controls takes minutes
    found = []
    for epochs in (2, 3):
        config = C2stConfig(n=100, epochs=epochs, seeds=(0,), batch_size=16)
        plan = Plan(("c2st",), tmp_path / str(epochs), c2st=config)
        found += run(Evaluation([subject(tmp_path / str(epochs), Fake())], [], plan, real)).results
    measuring = found[0].protocol.measuring
    assert (measuring.features, measuring.reference.name) == ("none", "digits")
    assert measuring.parameters["images a side"] <= 100
    assert measuring.parameters["classes matched"] is True
    with pytest.raises(ProtocolError, match=r"parameters\.epochs: 2 and 3"):
        compare_results(*found)


def test_settings_under_which_nothing_was_made_bind_nobody(tmp_path, real):
    with pytest.raises(NonFiniteError):
        run(evaluation(tmp_path, Fake(broken=(0,)), real, ("fd",)))
    assert (tmp_path / "settings.json").exists()
    assert run(evaluation(tmp_path, Fake(), real, ("fd",), seed=5)).results


def test_some_images_of_a_folder_are_of_all_classes(tmp_path):
    for k in range(200):
        save_pixels(tmp_path / f"{k:06d}.png", torch.full((1, 4, 4), k % 10, dtype=torch.uint8), durable=False)
    request = Request(f"folder:{tmp_path}", Plan(("fd",), tmp_path / "out"), "digits", features=("random-conv",), n=100)
    (picked,) = open_subjects(request).subjects
    values = picked.read(range(100)).images[:, 0, 0, 0]
    # Ten of each on average; every second file would be five classes only.
    assert torch.bincount(values.long(), minlength=10).min() >= 4
    assert len(set(picked.files)) == 100


def test_controls_are_made_once_for_a_reference(tmp_path, real, monkeypatch):
    kept = replace(real, cache=tmp_path / "cache")
    plan = Plan(("c2st",), tmp_path, c2st=C2stConfig(n=100, epochs=2, seeds=(0,), batch_size=16))
    seen = []
    for _ in range(2):
        words = []
        made = Evaluation([ArraySubject(real.data, "digits")], [], plan, kept)
        for _ in made.run():
            pass
        seen.append((finish(made, words.append).void, [word for word in words if "noise" in word]))
    (first, trained), (second, again) = seen
    assert len(trained) == 2  # one seed, two epochs
    assert again == []
    assert first == second
    (file,) = (tmp_path / "cache" / "c2st").iterdir()
    file.write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        run(made)


# What cannot be measured is known before anything is sampled


def refused(tmp_path, kind, match, metrics=("fd",), real=None, **changes):
    generator = Fake()
    with pytest.raises(kind, match=match):
        evaluation(tmp_path / "out", generator, real, metrics, **changes)
    assert generator.drawn == []
    assert not (tmp_path / "out").exists()


def test_metrics_whose_needs_are_not_met(tmp_path, real):
    unlabelled = RealImages(ImageData(real.data.images, None, (), "plain"), "all")
    other_names = RealImages(replace(real.data, classes=tuple("abcdefghij")), "all")
    refused(tmp_path, UnknownName, "No metric 'kidd'.*Did you mean 'kid'", ("kidd",), real)
    refused(tmp_path, ProtocolError, "'rho' needs classes on both sides", ("rho",), unlabelled)
    refused(tmp_path, ProtocolError, "'rho' needs classes on both sides, under the same", ("rho",), other_names)
    refused(tmp_path, ProtocolError, "'is' needs features that belong to a classifier", ("is",), real)
    refused(
        tmp_path, ProtocolError, "'class_accuracy' needs features .* classifier of the ref", ("class_accuracy",), real
    )
    refused(tmp_path, ProtocolError, "'clip' needs captions", ("clip",), real)
    refused(tmp_path, ProtocolError, "'memorisation' needs the images that the gen", ("memorisation",), real)
    refused(tmp_path, DataError, "64 images for fd in .* 64 dimensions", ("fd",), real, n=64)
    refused(tmp_path, DataError, "At least 130 images|fd_inf", ("fd_inf",), real, n=129)


def test_statistics_from_a_file_have_no_rows(tmp_path, real, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    features = Pixels(SHAPE)
    summary = FeatureSet(features.dim)
    summary.update(features(to_unit(real.data.images)), torch.arange(len(real.data)))
    write_statistics(tmp_path / "ref.npz", summary)
    folder = pictures(tmp_path / "pictures", 80)
    asked = Request(
        f"folder:{folder}", Plan(("fd",), tmp_path / "out"), str(tmp_path / "ref.npz"), features=("pixels",)
    )
    result = run(prepare(asked)).results[0]
    assert result.protocol.measuring.reference.name == "ref.npz"
    with pytest.raises(
        ProtocolError, match=r"'kid' needs feature vectors of the reference's images; .* Possible here: fd"
    ):
        prepare(replace(asked, plan=Plan(("kid",), tmp_path / "out")))
    with pytest.raises(ProtocolError, match="2 kinds of features for the statistics"):
        prepare(replace(asked, features=("pixels", "random-conv")))


# Folders


def pictures(folder: Path, n: int, names=None, start=0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        save_pixels(folder / f"{names[k] if names else f'{k:03d}'}.png", IMAGES[start + k], durable=False)
    return folder


def folder_request(folder, out, metrics=("fd",), **changes) -> Request:
    return Request(f"folder:{folder}", Plan(metrics, out, chunk=30), "digits", features=("pixels",), **changes)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_measured_in_pieces_and_named_by_its_content(tmp_path):
    folder = pictures(tmp_path / "pictures", 80)
    first = run(prepare(folder_request(folder, tmp_path / "out"))).results[0]
    shutil.copytree(folder, tmp_path / "elsewhere" / "pictures")
    again = run(prepare(folder_request(tmp_path / "elsewhere" / "pictures", tmp_path / "out2"))).results[0]
    assert first.protocol == again.protocol
    assert first.estimate == again.estimate
    expected = frechet_distance(
        image_moments(Pixels(SHAPE), to_unit(digits().images[:80])),
        image_moments(Pixels(SHAPE), to_unit(digits().images)),
    )
    assert first.estimate.value == pytest.approx(expected, rel=1e-6)


def test_a_truncated_picture_is_an_error_or_is_counted_and_named(tmp_path):
    folder = pictures(tmp_path / "pictures", 80)
    for name in ("007.png", "041.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])
    with pytest.raises(DataError, match=r"007\.png cannot be read"):
        run(prepare(folder_request(folder, tmp_path / "out")))
    outcome = run(prepare(folder_request(folder, tmp_path / "skipping", skip_bad=True)))
    assert outcome.skipped == ("007.png", "041.png")
    (result,) = outcome.results
    assert result.protocol.measuring.n == 78
    assert "2 files could not be read and were skipped: 007.png, 041.png" in result.note


def test_mixed_sizes_and_modes_name_both_files(tmp_path):
    folder = pictures(tmp_path / "pictures", 80)
    Image.new("L", (9, 8)).save(folder / "050.png")
    with pytest.raises(DataError, match=r"050\.png has 9x8 pixels, grey; .*000\.png has 8x8 pixels, grey.*--size"):
        run(prepare(folder_request(folder, tmp_path / "a")))
    Image.new("RGB", (8, 8)).save(folder / "050.png")
    with pytest.raises(DataError, match=r"050\.png has 8x8 pixels, colour; .*000\.png has 8x8 pixels, grey"):
        run(prepare(folder_request(folder, tmp_path / "b")))
    run(prepare(folder_request(folder, tmp_path / "c", size=8)))


def larger(folder: Path) -> Path:
    for file in folder.iterdir():
        Image.open(file).resize((16, 16)).save(file)
    return folder


def test_resized_pictures_are_not_compared_with_those_that_were_taken_as_they_are(tmp_path):
    asked = folder_request(larger(pictures(tmp_path / "large", 80)), tmp_path / "out", size=8)
    (result,) = run(prepare(asked)).results
    assert result.protocol.measuring.parameters == {"pictures": "cropped and resized to 8x8"}
    (other,) = run(prepare(folder_request(pictures(tmp_path / "small", 80), tmp_path / "out2", size=8))).results
    with pytest.raises(ProtocolError, match=r"parameters.pictures: 'cropped and resized to 8x8' and None"):
        compare_results(result, other)
    (loaded,) = run(prepare(replace(asked, what="digits", plan=Plan(("fd",), tmp_path / "out3")))).results
    assert loaded.protocol.measuring.parameters == {"pictures": "cropped and resized to 8x8"}


def test_features_that_do_not_resize_want_images_of_one_size(tmp_path):
    folder = larger(pictures(tmp_path / "pictures", 80))
    asked = replace(folder_request(folder, tmp_path / "out"), features=("random-conv",))
    with pytest.raises(DataError, match=r"shape \(1, 16, 16\) against real ones of shape \(1, 8, 8\) in random-conv"):
        prepare(asked)
    prepare(replace(asked, size=8))


def test_the_classifier_is_trained_once_and_kept_in_the_cache(tmp_path, monkeypatch):
    metrics = ("fd", "is", "class_accuracy")
    asked = Request("digits", Plan(metrics, tmp_path / "out"), "digits", train="digits", features=("classifier",))
    trained = []
    monkeypatch.setattr(prepare_module, "ClassifierConfig", partial(ClassifierConfig, epochs=1))
    monkeypatch.setattr(
        prepare_module, "train_classifier", lambda *given: trained.append(given) or train_classifier(*given)
    )
    first, second = run(prepare(asked)), run(prepare(replace(asked, plan=Plan(("fd",), tmp_path / "out2"))))
    assert len(trained) == 1
    assert [result.name for result in first.results] == ["fd", "is", "class_accuracy"]
    assert first.results[0].protocol.measuring == second.results[0].protocol.measuring
    assert first.results[0].protocol.measuring.features.startswith("digits-classifier@")
    assert 1 < first.results[1].estimate.value <= 10
    assert first.results[1].protocol.measuring.reference is None, "a score of the images alone"
    (folder,) = (tmp_path / "cache" / "classifiers").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


class Brightness:
    """A classifier of ten shades."""

    name, dim, resize, shades = "brightness", 1, "none", torch.linspace(-0.9, 0.9, 10)

    def __call__(self, images):
        return images.mean(dim=(1, 2, 3))[:, None]

    def logits_of(self, features):
        return -(features - self.shades).square()


class Painter(Fake):
    """A generator that paints the shade asked for, but for every fourth image, which has the next one."""

    def __call__(self, seeds, asked=None) -> Drawn:
        shade = [(int(label) + (seed % 4 == 0)) % 10 for seed, label in zip(seeds, asked, strict=True)]
        return Drawn(Brightness.shades[shade][:, None, None, None].expand(-1, *self.shape).clone(), 7, 14, 0.0)


def test_class_accuracy_counts_the_images_of_the_class_asked_for(tmp_path, real):
    outcome = run(evaluation(tmp_path, Painter(), real, ("class_accuracy",), n=200, features=[Brightness()]))
    (result,) = outcome.results
    assert result.estimate.value == 0.75
    assert result.estimate.low < 0.75 < result.estimate.high


def test_memorisation_looks_at_all_training_images_and_names_them(tmp_path):
    plan = Plan(("memorisation",), tmp_path / "out")
    write_samples(tmp_path / "held_out.npz", IMAGES[:500])
    held_out = f"npz:{tmp_path / 'held_out.npz'}"
    asked = Request("digits", plan, held_out, train="digits", features=("random-conv",), n=80)
    evaluated = prepare(asked)
    picked = random_rank(torch.arange(1797)).argsort()[:80].sort().values
    assert torch.equal(evaluated.subjects[0].data.images, IMAGES[picked]), "chosen at random"
    results = {result.name: result for result in run(evaluated).results}
    assert results["copies"].estimate.value == 1
    parameters = results["copies"].protocol.measuring.parameters
    assert parameters["train"].startswith("digits train (n = 1,797, ")
    assert parameters["quantile"] == 0.01


def test_training_images_are_the_split_train_beside_another_reference(tmp_path, real, monkeypatch):
    splits = []
    monkeypatch.setattr(prepare_module, "open_real", lambda *given: real)
    other = replace(digits(), images=digits().images.flip(0))
    monkeypatch.setattr(prepare_module, "load_images", lambda place, split, size: splits.append(split) or other)
    plan = Plan(("memorisation",), tmp_path / "out")
    asked = Request("digits", plan, "parquet:some", features=("random-conv",))
    prepare(asked)
    assert splits == ["train"]
    other = real.data
    with pytest.raises(ConfigError, match="The same 1,797 images as the reference and as the training images"):
        prepare(asked)


def test_a_namesake_in_other_weights_is_refused_and_says_so(tmp_path, real):
    outcome = run(evaluation(tmp_path, Fake(), real, ("sw",)))
    (result,) = outcome.results
    measuring = replace(result.protocol.measuring, features=f"{result.protocol.measuring.features}@0123456789ab")
    earlier = replace(result, protocol=replace(result.protocol, measuring=measuring))
    (refusal,) = outcome.against([earlier])
    assert isinstance(refusal, ProtocolError)
    assert "features: " in refusal.given


def test_classes_that_nobody_named_are_called_by_their_numbers(tmp_path):
    def labels(own, reference):
        found = labels_of(subject(tmp_path, Fake(), 3, asked=torch.tensor([0, 1, 1]), classes=own), reference)
        return None if found is None else found.tolist()

    assert labels(("cat", "dog"), ("dog", "cat")) == [1, 0, 0]
    assert labels(("0", "1"), ()) == [0, 1, 1]
    assert labels((), ("0", "1", "2")) == [0, 1, 1]
    assert labels((), ()) == [0, 1, 1]
    assert labels(("cat", "dog"), ()) is None, "nobody knows which number a cat has"
    assert labels((), ("cat", "dog")) is None


def test_images_of_an_npz_and_too_many_asked_for(tmp_path):
    write_samples(tmp_path / "s.npz", digits().images[:80], digits().labels[:80])
    asked = Request(f"npz:{tmp_path / 's.npz'}", Plan(("fd", "rho"), tmp_path / "out"), "digits", features=("pixels",))
    results = run(prepare(asked)).results
    assert [r.name for r in results] == ["fd", "rho"]
    with pytest.raises(DataError, match="100 images of 80"):
        prepare(replace(asked, n=100))
    with pytest.raises(ConfigError, match="2 seed sets"):
        prepare(replace(asked, sets=2))


# Prompts


def prompt_file(path: Path, ids) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["id", "prompt", "seed"])
        writer.writerows([name, f"a picture of {'x' * (k % 5)}", 100 + k] for k, name in enumerate(ids))
    return path


def prompted(tmp_path, what="fake", **changes) -> Request:
    ids = [f"{k:012d}" for k in range(80)]
    prompts = prompt_file(tmp_path / "tiny.tsv", ids)
    plan = Plan(("fd",), tmp_path / "out", chunk=30)
    return replace(Request(what, plan, "digits", features=("random-conv",), prompts=prompts, size=8), **changes)


def test_one_image_a_prompt_named_by_its_id_from_its_own_seed(tmp_path):
    real = pictures(tmp_path / "real", 90)
    for file in real.iterdir():
        Image.open(file).convert("RGB").save(file)
    generator, asked = Fake((3, 8, 8)), prompted(tmp_path, reference=f"folder:{real}")
    (result,) = run(prepare(asked, generator=generator)).results
    assert generator.drawn == list(range(100, 180))
    assert sorted(file.stem for file in (tmp_path / "out" / "images").iterdir()) == [f"{k:012d}" for k in range(80)]
    assert result.protocol.measuring.parameters["condition"].startswith("prompts tiny (80, ")
    again = prompted(tmp_path, f"folder:{tmp_path / 'out' / 'images'}", reference=f"folder:{real}")
    (same,) = run(prepare(replace(again, plan=Plan(("fd",), tmp_path / "out2")))).results
    assert same.estimate.value == pytest.approx(result.estimate.value, rel=1e-6)
    assert same.protocol.measuring == result.protocol.measuring


def test_seed_sets_of_prompts_have_their_own_seeds_and_folders(tmp_path):
    save_pixels(output_dir(tmp_path / "real") / "0.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    asked = prompted(tmp_path, reference=f"folder:{tmp_path / 'real'}", sets=2)
    sets = prepare(asked, generator=Fake()).subjects
    assert [one.seeds[0] for one in sets] == [100, 1_000_100]
    assert [one.folder.name for one in sets] == ["set_0", "set_1"]


def test_captions_without_images_and_images_without_captions(tmp_path):
    ids = [f"{k:012d}" for k in range(80)]
    folder = pictures(tmp_path / "pictures", 77, ids)
    asked = prompted(tmp_path, f"folder:{folder}")
    with pytest.raises(DataError, match=r"3 captions of tiny have no image in .*: 000000000077, 000000000078"):
        prepare(asked)
    pictures(folder, 5, [*ids[77:], "extra", "more"])
    with pytest.raises(DataError, match=r"2 images in .* have no caption in tiny: extra, more"):
        prepare(asked)


def test_pictures_are_matched_with_prompts_whatever_their_format_and_never_one_too_few(tmp_path):
    folder = pictures(tmp_path / "pictures", 3, ["a_b", "c", "d"])
    (folder / "d.png").rename(folder / "d.BMP")
    prompts = PromptSet("some", tuple(Prompt(name, f"text of {name}") for name in ("d.BMP", "a b", "c")))
    files, _, _ = folder_files(folder)
    assert [file.name for file in match_images(folder, files, prompts)] == ["d.BMP", "a_b.png", "c.png"]
    twice = PromptSet("some", (*prompts.prompts, Prompt("a_b", "another")))
    with pytest.raises(DataError, match="1 names of files belong to two captions of some: a_b"):
        match_images(folder, files, twice)


def test_ids_that_could_leave_the_folder_or_fall_together(tmp_path):
    assert file_name("../../etc/passwd") == "_._.._etc_passwd"
    assert file_name("COCO_val2014_000000391895.jpg") == "COCO_val2014_000000391895"
    with pytest.raises(DataError, match=r"'a/b' and 'a_b' would both be the file"):
        Generated(Fake(), tmp_path, range(2), ["x", "y"], names=["a/b", "a_b"])


# Processes

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
from experiments.test_evaluate import Fake, RandomConv, RealImages, Evaluation, Plan, digits, finish, subject
from fewstep.experiments.evaluation.outcome import write_outcome
from fewstep.experiments.evaluation.processes import processes
here, out, generator = processes("cpu"), Path({out!r}), Fake()
real, plan = RealImages(digits(), "all"), Plan(("fd", "kid"), out, 20)
one = Evaluation([subject(out, generator)], [RandomConv(1)], plan, real, None, here)
done = [report for report in one.run()]
(out / f"rank{{here.rank}}of{{here.size}}.txt").write_text(str(generator.drawn))
if here.first:
    write_outcome(out, finish(one), {{}})
"""


@pytest.mark.slow
def test_two_processes_share_the_work_and_give_the_bits_of_one(tmp_path):
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        (tmp_path / f"{count}.py").write_text(SCRIPT.format(tests=tests, out=str(out)))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*(torchrun if count == 2 else [sys.executable]), str(tmp_path / f"{count}.py")]
        subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    assert {file.name for file in (tmp_path / "2").glob("rank*")} == {"rank0of2.txt", "rank1of2.txt"}
    drawn = [json.loads((tmp_path / "2" / f"rank{k}of2.txt").read_text()) for k in range(2)]
    assert sorted(drawn[0] + drawn[1]) == list(range(N))
    assert all(len(part) > 40 for part in drawn)
    read = [json.loads((tmp_path / str(count) / "results.json").read_text()) for count in (1, 2)]
    assert read[0]["results"] == read[1]["results"]
