"""Combinations of levers: the factorial's arithmetic, the exact optimum of a margin and drawings."""

import numpy as np
import pandas as pd
import pytest

from safealign_utils import pairs
from safealign_utils.figures import side_by_side
from safealign_utils.methods import dog, safedpo
from safealign_utils.runs import cli
from safealign_utils.study import factorial
from safealign_utils.study import settings as parameters
from safealign_utils.world import optimum, tabular

LEVERS = {"pairs": ("all", "dog"), "winner": ("helpful", "T"), "tokens": ("all", "selective")}


def made(main, two, seeds=(0, 1)):
    """A full design whose effects are `main` {lever: size} and `two` {(lever, lever): size}, and a quantity of seeds alone."""
    rows = []
    for seed in seeds:
        for cell in factorial.design(LEVERS):
            sign = {name: 1 if cell[name] == LEVERS[name][1] else -1 for name in LEVERS}
            y = seed + sum(size * sign[name] for name, size in main.items()) / 2
            y += sum(size * sign[a] * sign[b] for (a, b), size in two.items()) / 2
            rows.append({"seed": seed, **cell, "y": y, "flat": float(seed)})
    return pd.DataFrame(rows)


def test_known_effects_come_back_exactly():
    main, two = (
        {"pairs": 0.5, "winner": -1.0, "tokens": 0.25},
        {("pairs", "winner"): 0.125, ("winner", "tokens"): -2.0},
    )
    table = made(main, two).sample(frac=1, random_state=0)
    found = factorial.effects(table, LEVERS, ["y", "flat"])
    assert len(found) == 2 * 6 and (found.flat == 0).all()
    for seed in (0, 1):
        own = found[found.seed == seed].set_index("effect").y
        assert own.to_dict() == pytest.approx(
            {**main, "pairs x winner": 0.125, "pairs x tokens": 0.0, "winner x tokens": -2.0},
            abs=1e-12,
        )


def test_an_interaction_is_half_the_difference_of_differences():
    y = {
        ("helpful", "all"): 0.61,
        ("helpful", "selective"): 0.02,
        ("T", "all"): 0.05,
        ("T", "selective"): 0.01,
    }
    two = {name: LEVERS[name] for name in ("winner", "tokens")}
    table = pd.DataFrame([{"seed": 0, "winner": w, "tokens": t, "y": v} for (w, t), v in y.items()])
    found = factorial.effects(table, two, ["y"]).set_index("effect").y
    assert found["winner x tokens"] == pytest.approx(((0.01 - 0.05) - (0.02 - 0.61)) / 2)
    assert found["winner"] == pytest.approx((0.05 + 0.01) / 2 - (0.61 + 0.02) / 2)


def test_a_design_with_gaps_or_one_level_is_refused():
    table = made({"pairs": 1.0}, {})
    with pytest.raises(ValueError, match="seed 1: 7 rows"):
        factorial.effects(table.drop(table.index[-1]), LEVERS, ["y"])
    with pytest.raises(ValueError, match="seed 0: 8 rows"):
        factorial.effects(
            pd.concat([table.iloc[:7], table.iloc[:1], table.iloc[8:]]), LEVERS, ["y"]
        )
    with pytest.raises(ValueError, match="tokens=.*two different levels"):
        factorial.design(LEVERS | {"tokens": ("all", "all")})
    assert len(factorial.design(LEVERS)) == 8 and factorial.design(LEVERS)[0] == {
        k: v[0] for k, v in LEVERS.items()
    }


def near(value, half=0.01):
    return value, value - half, value + half


@pytest.mark.parametrize(
    "first, second, both, word",
    [
        (near(-0.3), near(-0.2), near(0.001), "add up"),
        (near(-0.3), near(-0.2), near(0.03, 0.015), "add up"),
        (near(-0.3), near(-0.2), near(0.001, 0.2), "undecided"),
        (near(-0.3), near(-0.2), near(0.2), "do the same work"),
        (near(0.3), near(0.2), near(-0.2), "do the same work"),
        (near(-0.3), near(-0.2), near(-0.1), "strengthen"),
        (near(-0.3), near(0.2), near(0.2), "fight"),
        (near(-0.3), near(0.2), near(-0.2), "fight"),
        (near(-0.3), near(0.001), near(0.2), "interact"),
        ((-0.3, None, None), (-0.2, None, None), (0.2, None, None), "undecided"),
    ],
)
def test_two_levers_get_a_word(first, second, both, word):
    assert factorial.reading(first, second, both) == word


def test_a_margin_on_helpful_labels_is_a_penalty_on_unsafe_responses():
    """And T, with any margin, ends at the safe optimum: the two do the same work."""
    g = np.random.default_rng(0)
    logp, r, unsafe = (
        optimum.normalise(g.normal(size=(1, 12))),
        g.normal(size=12),
        1.0 * (np.arange(12) % 3 == 0),
    )
    a, b = tabular.all_pairs(12)
    helpful = 1 / (1 + np.exp(r[b] - r[a]))
    fitted = tabular.fit(logp[0], helpful, beta=0.5, margin=3.0 * (unsafe[b] - unsafe[a]))
    wanted = optimum.lagrangian_optimal(logp, r[None], unsafe[None], lam=3.0, beta=0.5)
    assert optimum.total_variation(fitted[None], wanted) < 1e-6
    assert optimum.total_variation(wanted, optimum.optimal(logp, r[None], beta=0.5)) > 0.1


def test_what_needs_no_helpful_label(world, reference):
    """T gives the same pairs whoever is more helpful in a pair with an unsafe response; DOG-D picks before any label."""
    table = pairs.label(world.pairs(200, seed=3))
    some = table[np.any(safedpo.unsafe_labels(table), axis=0)].reset_index(drop=True)
    turned = some.assign(chosen=1 - some.chosen)
    assert (
        safedpo.transform(some)[0].equals(safedpo.transform(turned)[0].assign(margin=0.0))
        and len(some) > 50
    )
    u = dog.directions(reference, pairs.tokenize(table, reference))
    flipped = dog.directions(
        reference, pairs.tokenize(table.assign(chosen=1 - table.chosen), reference)
    )
    assert (u + flipped).abs().max() < 1e-6
    source = [world.prompts[i].category for i in table.prompt_id]
    assert (dog.dog_d(u, source, 22).rows == dog.dog_d(-u, source, 22).rows).all()


@pytest.mark.parametrize(
    "given, words",
    [
        ("methods=dpo,magic", ["methods=['dpo', 'magic']", "names among dpo, dpo_harmless"]),
        ("delta=-1", ["delta=-1.0", "0 or above"]),
        ("budget=0", ["budget=0.0", "above 0, up to 1"]),
        ("keep=1.5", ["keep=1.5", "above 0, up to 1"]),
        ("cost_limit=-7", ["cost_limit=-7", "lowest attainable"]),
        ("pairs=100", ["pairs=100", "at least 160"]),
        ("pool=plain", ["pool='plain'", "near, exact, spread"]),
        ("data=pairs.jsonl", ["data='pairs.jsonl'"]),
    ],
)
def test_what_cannot_be_used_is_refused(given, words, capsys, tmp_path):
    status = cli.main(
        ["run", "06_one_loss_four_levers", "-p", given, "--out", str(tmp_path / "out")]
    )
    err = capsys.readouterr().err
    assert status == 2 and all(word in err for word in words), err


# ---------------------------------------------------------------- drawings


def ends(table, *quantities):
    return table.assign(
        **{
            f"{q}{end}": table[q] + d
            for q in quantities
            for end, d in (("_low", -0.1), ("_high", 0.2))
        }
    )


METHODS = ends(
    pd.DataFrame(
        {"method": ["ref", *parameters.METHODS], "harmless": np.linspace(40, 99, 16), "reward": 1.0}
    ),
    "harmless",
    "reward",
)
CELLS = pd.DataFrame(factorial.design(LEVERS | {"margin": ("none", "delta")}))
CELLS = ends(CELLS.assign(harmless=np.linspace(40, 99, 16), reward=1.0), "harmless", "reward")
EFFECTS = ends(
    pd.DataFrame({"effect": ["pairs", "winner", "pairs x winner"], "unsafe": [0.1, -0.2, 0.3]}),
    "unsafe",
)
EXACT = dict(curves={"one": np.array([[40, 2.0], [100, 1.0]])}, stars=[(40, 2.0, "π*")])
DRAWINGS = {
    "methods": lambda: side_by_side.methods(METHODS, **EXACT, n=3),
    "cells": lambda: side_by_side.cells(CELLS, **EXACT, n=3),
    "effects": lambda: side_by_side.effects(
        EFFECTS, quantities={"unsafe": "P(unsafe)"}, n=3, exact={("winner", "unsafe"): -0.3}
    ),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_drawing_is_the_same_bytes_each_time(draw):
    assert draw()._repr_png_() == draw()._repr_png_()


def test_what_is_drawn_is_what_was_given():
    (ax,) = DRAWINGS["effects"]().axes
    drawn = ax.collections[-1].get_offsets()
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert np.allclose(drawn[:, 0], EFFECTS.unsafe) and labels == [
        "pairs",
        "winner",
        "pairs × winner",
    ]
    left, right = DRAWINGS["cells"]().axes
    assert len(left.containers) == len(right.containers) == 8


def test_every_method_has_a_colour_and_a_name_of_its_own():
    looks = side_by_side.LABELS, side_by_side.COLOURS
    names, colours = (list(map(look.get, parameters.METHODS)) for look in looks)
    assert len(set(names)) == len(set(colours)) == 15 and None not in names + colours
