"""Shared pieces of the tests: an empty cache for the session, a world, a small policy of it."""

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch

# Minutes each: they start first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "runs/test_faults.py",
    "notebooks/test_same_digits.py",
    "real/test_smollm2.py",
    "runs/test_runner.py",
    "runs/test_fresh_kernel.py",
    "study/test_real_text.py",
    "notebooks/test_method_notebooks.py",
    "engine/test_distributed.py",
    "runs/test_sweep.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first, the others as they are."""
    rank = {Path(__file__).parent / name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish(session):
    """Every training ends with a garbage collection: it need not look at what was imported."""
    if not session.config.option.collectonly:
        from safealign_utils.engine.torch_setup import freeze_imports

        freeze_imports()


@pytest.fixture(scope="session", autouse=True)
def empty_cache(tmp_path_factory):
    """Every test session starts from an empty cache of its own."""
    before = os.environ.get("SAFEALIGN_CACHE")
    os.environ["SAFEALIGN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["SAFEALIGN_CACHE"]
    else:
        os.environ["SAFEALIGN_CACHE"] = before


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path):
    """An empty cache for one test."""
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def world():
    from safealign_utils.world.world import World

    return World()


@pytest.fixture(scope="session")
def reference(world):
    from safealign_utils.references import reference_policy

    return reference_policy(world, seed=0)[0].to("float64")


@pytest.fixture(scope="session")
def tokens(world, reference):
    from safealign_utils import pairs

    return pairs.tokenize(pairs.label(world.pairs(64, seed=0)), reference)


@pytest.fixture(scope="module")
def inside(reference):
    return dataclasses.replace(reference, constrained=True)


@pytest.fixture(scope="module")
def prompts(world):
    return [int(world.select("heldout", intent)[0]) for intent in ("benign", "borderline", "risky")]


@pytest.fixture(scope="module")
def other(reference):
    """A policy at some distance from the reference, inside the grammar."""
    moved = dataclasses.replace(reference.copy(), constrained=True)
    with torch.no_grad():
        for i, weights in enumerate(moved.model.parameters()):
            weights *= 1 + 0.03 * math.sin(i + 1)
    return moved


@pytest.fixture
def real_data():
    """The folder of real data named by SAFEALIGN_DATA; tests that need it skip with a reason elsewhere."""
    folder = os.environ.get("SAFEALIGN_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SAFEALIGN_DATA names no folder of real preference data")
    return Path(folder)
