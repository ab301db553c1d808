"""Random streams: the numbers of today, one table, and no two streams alike by accident."""

import re

import numpy as np
import pytest
from helpers import ROOT

from safealign_utils.engine.streams import SHARED, STREAMS, generator


def test_a_stream_is_its_seed_its_name_and_its_indices():
    assert generator(3, "coin flips").random() == generator(3, "coin flips").random()
    known = np.random.Generator(np.random.PCG64([3, 2**30 + 7])).random(4)
    assert np.array_equal(generator(3, "coin flips").random(4), known)
    with pytest.raises(KeyError, match="coins"):
        generator(3, "coins")


def test_no_two_streams_begin_alike():
    """First numbers of every name at the indices that the kit asks for; what is shared is named and shared."""
    indices = {
        "pair": [(i,) for i in range(3000)],
        "pool": [(j, k, i) for j in range(4) for k in range(3) for i in range(160)],
        "samples of the cost": [(i,) for i in range(20)],
        "answers": [(2**61 + 5, 0), (2**61 + 5, 1), (2**62 + 7, 0)],
        "rollouts": [(i,) for i in range(80)],
        "minibatches": [(i,) for i in range(80)],
    }
    owners = {}
    for seed in (0, 1):
        for name in STREAMS:
            for index in indices.get(name, [()]):
                first = generator(seed, name, *index).random()
                owners.setdefault(first, set()).add(name)
    shared = {tuple(sorted(names)) for names in owners.values() if len(names) > 1}
    assert shared == {tuple(sorted(names)) for names in SHARED}


def test_all_random_numbers_of_the_kit_come_from_the_table():
    free = {"study/exercises.py"}  # made-up rows of the exercises
    for file in (ROOT / "safealign_utils").rglob("*.py"):
        name = str(file.relative_to(ROOT / "safealign_utils"))
        if name not in free | {"engine/streams.py"}:
            assert not re.search(r"(PCG64|default_rng)\(", file.read_text()), name
