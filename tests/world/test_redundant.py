"""Pools to select from: what the data sets share, what is their own, what is a copy; and the rows of the world."""

import numpy as np
import pytest

from safealign_utils import pairs
from safealign_utils.engine import cache
from safealign_utils.methods.dog import merge_copies
from safealign_utils.world.redundant import DATA_SETS, KINDS, OWN, SHARED, world_pool

N, RARE = (
    480,
    3,
)  # four data sets of 120 rows: 3 of their own category, 3 originals of the shared one, 114 copies
PAIR = ["prompt_id", "y_0", "y_1"]


@pytest.fixture(scope="module")
def pools(world):
    return {kind: world_pool(world, N, kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def originals(pools):
    """The rows that an exact pool repeats."""
    return pools["exact"].drop_duplicates([*PAIR, "source"])


def meaning(world, table):
    """What a copy keeps: (data set, category, intent, meaning but for the closing, twice) of each row."""

    def said(y):
        return world.responses[y].meaning[:-1]

    rows = zip(table.source, table.prompt_id, table.y_0, table.y_1)
    kept = [
        (s, world.prompts[x].category, world.prompts[x].intent, said(a), said(b))
        for s, x, a, b in rows
    ]
    return np.array(list(map(repr, kept)))


@pytest.mark.parametrize("n", [160, 482])
def test_how_many_rows_each_category_has(world, n):
    table = world_pool(world, n, kind="exact")
    sizes, rare = table.source.value_counts(), n // 160
    assert sorted(sizes) == sorted((n + 3 - j) // 4 for j in range(4)) and sorted(
        sizes.index
    ) == list(DATA_SETS)
    for name, own in zip(DATA_SETS, OWN):
        count = table.category[table.source == name].value_counts()
        assert count.to_dict() == {SHARED: sizes[name] - rare, own: rare}, (
            "its own category, and no other's"
        )


def test_every_kind_has_the_same_prompts_of_the_training_split(world, pools):
    for table in pools.values():
        assert len(table) == N and table.index.tolist() == list(range(N))
        assert {world.prompts[x].split for x in table.prompt_id} == {"train"}
        assert table.category.tolist() == [world.prompts[x].category for x in table.prompt_id]
        assert table.category.tolist() == pools["near"].category.tolist()
        assert (table.source.value_counts() == N // 4).all()


def test_spread_deals_out_the_names_and_changes_nothing_else(pools):
    near, spread = pools["near"], pools["spread"]
    assert near.drop(columns="source").equals(spread.drop(columns="source"))
    own = [
        table[table.category != SHARED].groupby("category").source.nunique()
        for table in (near, spread)
    ]
    assert (own[0] == 1).all() and (own[1] > 1).any()
    assert abs((near.source == spread.source).mean() - 1 / 4) < 4 * np.sqrt(3 / 16 / N)


def test_exact_copies_are_equal_rows_and_are_merged(pools, originals):
    exact = pools["exact"]
    copies = exact[exact.category == SHARED].groupby(PAIR + ["source"])
    assert copies.size().tolist() == [39] * 4 * RARE, "3 originals make 117 rows of each data set"
    assert (copies.nunique() == 1).all(axis=None), "labels and all"
    merged, counts = merge_copies(pairs.label(exact))
    assert sorted(counts) == [1] * 4 * RARE + [39] * 4 * RARE
    assert merged[PAIR].to_numpy().tolist() == originals[PAIR].to_numpy().tolist()


def test_near_copies_mean_the_same_in_other_words(world, pools, originals):
    near = pools["near"]
    assert set(meaning(world, near)) == set(meaning(world, originals)), (
        "of an original of the same data set"
    )
    assert (near.response_0 != near.response_1).all()
    same = set(map(tuple, originals[["source", *PAIR]].to_numpy()))
    copied = [row in same for row in map(tuple, near[["source", *PAIR]].to_numpy())]
    assert len(originals) <= sum(copied) < len(originals) + 0.05 * N, (
        "the originals, and hardly a copy by chance"
    )
    merged = merge_copies(pairs.label(near))[0]
    assert len(merged) > 0.8 * N
    assert len({(x, *sorted(y)) for x, *y in merged[PAIR].to_numpy().tolist()}) == len(merged), (
        "whoever won"
    )
    for _, group in near.groupby(meaning(world, near)):
        if len(group) > 30:
            assert {world.prompts[x].noun for x in group.prompt_id} == {"oven", "blender", "fryer"}
            for y in (group.y_0, group.y_1):
                assert y.nunique() > 1 and {world.responses[i].closing for i in y} == {0, 1}


def test_labels_of_near_copies_are_drawn_anew(world, pools):
    near = pools["near"]
    for k in (0, 1):
        x, y = near.prompt_id, near[f"y_{k}"]
        assert (near[f"reward_{k}"] == world.reward[x, y]).all() and (
            near[f"cost_{k}"] == world.cost[x, y]
        ).all()
        assert (near[f"is_response_{k}_safe"] == (near[f"cost_{k}"] <= 0)).all()
        assert near[f"response_{k}"].tolist() == [world.text(i, j) for i, j in zip(x, y)]
    mixed = near[near.is_response_0_safe != near.is_response_1_safe]
    assert len(mixed) > 20 and (mixed.safer_response_id == mixed.is_response_1_safe).all()
    p = 1 / (1 + np.exp(near.reward_0 - near.reward_1))
    assert abs((near.better_response_id - p).mean()) < 4 * np.sqrt((p * (1 - p)).mean() / N)
    close = near[p.between(0.2, 0.8)]
    winners = [
        group.better_response_id.nunique()
        for _, group in close.groupby(meaning(world, close))
        if len(group) > 30
    ]
    assert len(winners) > 2 and min(winners) == 2, (
        "of one original's copies some have the other winner"
    )


def test_originals_do_not_depend_on_the_size(world, originals):
    few = world_pool(world, 160, kind="exact")[
        ["source", *PAIR, "better_response_id"]
    ].drop_duplicates()

    def rows(table):
        return set(map(tuple, table[list(few)].to_numpy()))

    assert len(few) == 8 and rows(few) < rows(originals)


def test_a_seed_names_a_pool(world, pools):
    exact = pools["exact"]
    assert world_pool(world, N, kind="exact").equals(exact)
    other = world_pool(world, N, kind="exact", seed=1)
    assert len(other.merge(exact, on=["source", *PAIR])) < 0.1 * N


@pytest.mark.parametrize(
    "given, reason",
    [
        (dict(n=400, kind="fuzzy"), "^pool='fuzzy': choose one of near, exact, spread$"),
        (dict(n=159), "^pairs=159: .* needs at least 160$"),
        (dict(n=0), "^pairs=0: "),
    ],
)
def test_refusals_say_what_to_do(world, given, reason):
    with pytest.raises(ValueError, match=reason):
        world_pool(world, **given)


# ---------------------------------------------------------------- rows of the world


def test_two_responses_follow_the_behaviour_without_replacement(world):
    for x in world.select("train")[[0, 22, 44]]:
        b = world.behaviour[x]

        def middle(i, b):
            return (np.cumsum(b)[i] - b[i] / 2) / b.sum()  # the uniform that draws number i

        for first in (0, 1, 300, 602, 603):
            rest = np.delete(b, first)
            for second in {0, 5, 299, 301, 603} - {first}:
                u = middle(first, b), middle(second - (second > first), rest)
                assert world.two_responses(x, u) == [first, second]
    drawn = [
        world.two_responses(0, u) for u in [(0, 0), *np.random.default_rng(0).random((2000, 2))]
    ]
    assert all(a != b for a, b in drawn)


def test_labels_by_hand(world):
    """A risky garden prompt: is response 0 better, who is safer, and what a flip does."""
    x = next(
        p.id
        for p in world.prompts
        if (p.category, p.noun, p.intent) == ("garden", "mower", "risky")
    )
    safe, unsafe = (np.flatnonzero(world.cost[x] <= 0)[9], np.flatnonzero(world.cost[x] > 0)[9])
    worse = np.flatnonzero(world.cost[x] > world.cost[x, unsafe])[0]
    p = 1 / (
        1 + np.exp(world.reward[x, unsafe] - world.reward[x, safe])
    )  # that the safe one is better
    q = 1 / (
        1 + np.exp(world.cost[x, unsafe] - world.cost[x, worse])
    )  # that the less unsafe one is safer
    rows = [
        (x, [safe, unsafe], u)
        for u in ([p - 1e-9, 0.1, 0.9], [p + 1e-9, 0.1, 0.1], [p - 1e-9, 0.3, 0.5])
    ]
    rows += [(x, [unsafe, safe], [0.5, 0.5, 0.0])] + [
        (x, [unsafe, worse], [0.5, 0.5, q + e]) for e in (-1e-9, 1e-9)
    ]
    table = world.labelled(rows)
    assert table.better_response_id[:3].tolist() == [0, 1, 0]
    assert world.labelled(rows, label_noise=0.2).better_response_id[:3].tolist() == [1, 0, 0]
    assert table.safer_response_id.tolist() == [0, 0, 0, 1, 0, 1]
    assert table.is_response_0_safe.tolist() == [True] * 3 + [False] * 3
    assert table.response_1[3] == world.text(x, safe) and table.prompt[5] == world.prompts[x].text


PINNED = {
    "near": "52b5f0698c31a863",
    "exact": "5fe1bd34dd23c979",
    "spread": "52b5f0698c31a863",
    "source of near": "46ff0cfcd8ee2d82",
    "source of exact": "46ff0cfcd8ee2d82",
    "source of spread": "534c49dbf79f42b3",
    "World.pairs": "aba53091880dc5d5",
}


def test_data_are_pinned(world, pools):
    """The same on every machine and from version to version: these very values."""
    found = {kind: pairs.data_hash(pairs.label(table)) for kind, table in pools.items()}
    found |= {
        f"source of {kind}": cache.digest(table.source.tolist()) for kind, table in pools.items()
    }
    found["World.pairs"] = pairs.data_hash(pairs.label(world.pairs(300, seed=3)))
    assert found == PINNED
