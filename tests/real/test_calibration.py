"""A cost's unit: scales and bends are found and undone; without labels that have a unit nothing moves."""

import numpy as np
import pytest
import torch

from safealign_utils.real import calibration as C
from safealign_utils.real.scorer import Scorer


def scorer(world, bend):
    """The oracle's cost through a function, as a `Scorer`."""

    def encode(prompts, responses):
        x = [world.prompt_id(text) for text in prompts]
        y = [world.response_number(i, text) for i, text in zip(x, responses)]
        return [[np.array([i]), np.array([j])] for i, j in zip(x, y)]

    def forward(rows):
        cost = [world.cost[int(x[0]), int(y[0])] for x, y in rows]
        return torch.from_numpy(bend(np.array(cost)))

    name = bend.__name__
    return Scorer(name, "cost", lambda: [name], encode, forward)


def fourfold(c):
    return 4 * c


def bent(c):
    return np.where(c > 0, 6 * c, 2 * c)


@pytest.fixture(scope="module")
def table(world):
    return world.pairs(4000, seed=3)


def through(made, bend, world, table):
    """(costs of response 0 through the fitted map, the oracle's), float [N] each."""
    cost = scorer(world, bend)
    learned = C.rescaled(cost, made(cost, table))(table.prompt, table.response_0)
    return learned, table.cost_0.to_numpy()


def test_one_number_is_found(world, table):
    learned, oracle = through(C.temperature, fourfold, world, table)
    assert (learned @ oracle) / (oracle @ oracle) == pytest.approx(1.0, abs=0.1)


def test_a_bend_is_found_by_the_isotonic_map_alone(world, table):
    far = {}
    for made in (C.temperature, C.isotonic):
        learned, oracle = through(made, bent, world, table)
        far[made] = np.abs(learned - oracle).mean()
    assert far[C.isotonic] < 0.5 * far[C.temperature]


def test_the_map_does_not_fall_and_keeps_zero(world, table):
    g = np.random.default_rng(0)
    noisy = table.assign(safer_response_id=g.integers(0, 2, len(table)))  # labels say nothing
    for rows in (table, noisy):
        mapped = C.isotonic(scorer(world, bent), rows)(np.linspace(-3, 3, 61))
        assert (np.diff(mapped) >= 0).all() and mapped[30] == pytest.approx(0, abs=1e-12)
        assert (mapped[:30] <= 0).all() and (mapped[31:] >= 0).all()


def test_without_pairs_of_equal_status_nothing_moves(world, table):
    mixed = table[table.is_response_0_safe != table.is_response_1_safe]
    cost = scorer(world, fourfold)
    for made in (C.temperature, C.isotonic):
        assert made(cost, mixed)([-2.0, 0.0, 3.0]).tolist() == [-2.0, 0.0, 3.0]
    named = C.rescaled(cost, C.temperature(cost, table))
    assert named.name == "fourfold, in nats" and named.hash != cost.hash
