"""Pools to select from: four data sets of the world's pairs, heavily redundant, each with a rarity.

Data card. Every data set holds the same number of rows. 95 % of them re-word the others, as
augmented data do. Half of the originals are about the *shared* category (kitchen), and all
re-wordings are of these; the other half is about the data set's *own* category (garden, workshop,
cycling or painting) and is re-worded nowhere. So 97.5 % of a data set is about what all of them
share. Written before any rule of DOG was run on it; the rare share was halved to 2.5 %, so that
95 % re-word the rest, after random and stratified picks had been tried. Three kinds:

near    noun, wordings, connector and closing of a copy are drawn among those that say the same; so
        are its labels
exact   a copy is the original itself, labels and all
spread  as near, but the names of the data sets are dealt out at random: they say nothing about the
        category
"""

import numpy as np

from ..engine.streams import generator

SHARED, OWN = "kitchen", ("garden", "workshop", "cycling", "painting")
DATA_SETS = ("set_a", "set_b", "set_c", "set_d")
SMALLEST = 160  # rows: one of the own category in each data set
KINDS = ("near", "exact", "spread")
RARE = 0.025  # share of own rows, and of originals of the shared category


def world_pool(world, n, *, seed=0, kind="near"):
    """n pairs in four data sets: the columns of `World.pairs`, `source` and `category`.

    Each row has a random generator of its own. Raises ValueError for an unknown kind, n below
    160, and a world of other words.
    """
    if kind not in KINDS:
        raise ValueError(f"pool={kind!r}: choose one of {', '.join(KINDS)}")
    if n < SMALLEST:
        raise ValueError(
            f"pairs={n}: a pool of four data sets with {RARE:.1%} own rows each needs at least "
            f"{SMALLEST}"
        )
    if world.size == "attributes":
        raise ValueError(f"world_size={world.size!r}: pools are made of the default world's words")
    gists = {}  # what a response says, but for its closing: the responses that say it
    for number, y in enumerate(world.responses):
        gists.setdefault(y.meaning[:-1], []).append(number)
    sizes, rows = np.bincount(np.arange(n) % len(DATA_SETS)), []
    for j, size in enumerate(sizes):
        rows += _data_set(world, j, size, seed, gists if kind != "exact" else None)
    shuffle = generator(seed, "pool order")
    order = shuffle.permutation(n)
    names = np.repeat(DATA_SETS, sizes)[shuffle.permutation(n) if kind == "spread" else order]
    table = world.labelled([rows[i] for i in order])
    category = [world.prompts[x].category for x in table.prompt_id]
    return table.assign(source=names, category=category)


def _data_set(world, j, size, seed, gists):
    """Rows of data set number j for `World.labelled`; without `gists` its copies are exact."""

    def uniforms(part, i):
        return generator(seed, "pool", j, part, i).random(10)

    rare = round(RARE * size)
    own = [_original(world, OWN[j], uniforms(0, i)) for i in range(rare)]
    shared = [_original(world, SHARED, uniforms(1, i)) for i in range(rare)]
    rows = own + shared
    for i in range(rare, size - rare):
        row = shared[i % rare]
        rows.append(_reworded(world, gists, row, uniforms(2, i)) if gists else row)
    return rows


def _original(world, category, u):
    """(prompt id, two responses, uniforms for the labels) of a fresh row."""
    ids = _prompts(world, category)
    x = ids[int(u[0] * len(ids))]
    return x, world.two_responses(x, u[1:3]), u[3:6]


def _reworded(world, gists, row, u):
    """The same pair in other words."""
    x, y, _ = row
    ids = _prompts(world, world.prompts[x].category, world.prompts[x].intent)
    a, b = (np.array(gists[world.responses[i].meaning[:-1]]) for i in y)
    first = a[int(u[1] * len(a))]
    rest = b[b != first]
    return ids[int(u[0] * len(ids))], [first, rest[int(u[2] * len(rest))]], u[3:6]


def _prompts(world, category, intent=None):
    ids = world.select("train", intent)
    return np.array([x for x in ids if world.prompts[x].category == category])
