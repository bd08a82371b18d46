"""The shipped bundles: whole, small, on budget, and the same to all engines."""

import itertools
import math
import subprocess

import numpy as np
import pytest

from models.bundle import read_bundle
from models.compute import cap_macs
from service.engines.onnx_graph import OnnxEngine
from service.engines.reference import TorchEngine
from service.settings import SHIPPED

# Beside them, and not shipped, may lie what whoever runs the tests has trained.
NAMES = ("cifar10-mcifarnet", "cifar10-vgg16", "imagenette-resnet18")
BUNDLES = [SHIPPED / name for name in NAMES]
N = 60


def scenes(bundle, seed):
    """(N, 3, H, W) preprocessed: colour gradients with discs, from flat to noisy."""
    size = bundle.card.preprocessing.size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    pixels = []
    for noise in np.linspace(0, 90, N):
        colours = rng.uniform(0, 255, (3, 3))
        image = colours[0] * x[..., None] + colours[1] * (1 - x)[..., None]
        cx, cy, radius = rng.uniform(0.2, 0.8, 3)
        image[(x - cx) ** 2 + (y - cy) ** 2 < (radius / 3) ** 2] = colours[2]
        pixels.append(image + rng.normal(0, noise, image.shape))
    return bundle.card.preprocessing.normalise(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module", params=BUNDLES, ids=NAMES)
def bundle(request):
    return read_bundle(request.param)


@pytest.fixture(scope="module")
def engines(bundle):
    return TorchEngine(bundle, threads=1), OnnxEngine(bundle, threads=1)


def test_bundles_named_here_are_those_in_the_repository():
    listing = ["git", "ls-files", "--", "*/bundle.json"]
    done = subprocess.run(listing, cwd=SHIPPED, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no clone of the repository")
    assert done.stdout.split() == [f"{name}/bundle.json" for name in NAMES]


def test_bundle_is_small(bundle):
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 15 * 2**20


def test_bundle_spends_its_budgets_on_test_images(bundle):
    points = bundle.card.test
    assert {0.15, 0.25, 0.4, 0.6, 0.8, 1.0} <= {point.budget for point in points}
    assert all(abs(point.fraction - point.budget) <= 0.02 for point in points)
    assert points[-1].accuracy >= 0.84
    # More compute never costs more than chance does.
    *looked, plain = points
    assert all(a.accuracy <= b.accuracy + 0.004 for a, b in itertools.pairwise(looked))
    # The plain network sees only one view of an image.
    least = plain.accuracy if bundle.card.agent.views == "both" else plain.accuracy - 0.004
    assert looked[-1].accuracy > least


def test_bundle_at_rest_in_the_auto_mode_is_as_right_as_the_full_network(bundle):
    points, best = bundle.card.test, bundle.card.best_budget
    assert best < 0.6
    found = np.interp(best, [p.budget for p in points], [p.accuracy for p in points])
    # That it is was found on held-out images, and these are others.
    assert found >= points[-1].accuracy - 0.001


def test_bundle_names_the_commit_that_made_it(bundle):
    assert len(bundle.card.git_commit) == 40


def test_engines_agree_and_keep_caps(bundle, engines):
    images = np.concatenate([scenes(bundle, seed) for seed in (15, 40)])
    # All pairs of them, each of several images from flat to noisy.
    penalty = np.float32([bundle.card.penalty(budget) for budget in (0.15, 0.4, 0.8, 1.0)])
    cap = np.array([0.12, 0.3, 1.0, 1.5, math.inf])
    penalty, cap = (np.resize(each, len(images)) for each in (penalty, cap))
    torch, onnx = (engine.run(images, penalty, cap) for engine in engines)
    assert np.array_equal(torch.widths, onnx.widths)
    assert np.array_equal(torch.macs, onnx.macs)
    assert np.allclose(torch.logits, onnx.logits, atol=1e-3)
    assert (torch.macs <= cap_macs(cap, bundle.card.table().full)).all()


def test_paths_differ_among_images(bundle, engines):
    images = scenes(bundle, seed=1)
    penalty = np.full(N, bundle.card.penalty(0.4), np.float32)
    widths = engines[0].run(images, penalty, np.ones(N)).widths
    assert len(np.unique(widths, axis=0)) > 2


def test_some_images_are_run_along_several_paths_one_after_another(bundle, engines):
    images, table = scenes(bundle, seed=1), bundle.card.table()
    penalty = np.full(N, bundle.card.penalty(0.4), np.float32)
    macs = engines[0].run(images, penalty, np.full(N, math.inf)).macs
    first, *others = table.looks
    at_most_two = {first, *(first + more for more in others)}
    assert any(spent in at_most_two for spent in macs.tolist())
    assert any(spent not in at_most_two for spent in macs.tolist())
