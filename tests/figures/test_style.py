"""Figures: returned, saved as the same bytes each time, without date or version, whatever the process's style."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from safealign_utils.figures import dpo_and_safety, style
from safealign_utils.figures.verdicts import verdicts


def log(n=30):
    t = np.arange(1.0, n + 1)
    return pd.DataFrame(
        {"step": t, "loss": np.exp(-t / n), "chosen": -t / n, "rejected": -2 * t / n}
    )


def points(n):
    rows = [("dpo", b, 0.5 + b, 0.2 + b) for b in (0.5, 1.0)] + [("dpo_soft", 0.5, 1.4, 0.6)]
    table = pd.DataFrame(rows, columns=["method", "beta", "reward", "kl_ref"])
    wide = 0.1 if n > 1 else 0.0
    return table.assign(
        **{
            f"{q}_{e}": table[q] + s * wide
            for q in ("reward", "kl_ref")
            for e, s in (("low", -1), ("high", 1))
        }
    )


def distances():
    rows = [(m, n, 1 / n) for m in ("dpo", "dpo_soft") for n in (100, 1000)]
    table = pd.DataFrame(rows, columns=["method", "pairs", "kl_opt"])
    return table.assign(kl_opt_low=table.kl_opt / 2, kl_opt_high=table.kl_opt * 2)


def wide(table, columns):
    return table.assign(
        **{f"{q}_{e}": table[q] + s * 0.1 for q in columns for e, s in (("low", -1), ("high", 1))}
    )


def margins():
    rows = [
        (n, d, 0.1 / (1 + d), 1 - 0.01 * d, 0.3)
        for n in (100, 200, 600, 1800, 5400, 9000)
        for d in (0.0, 5.0)
    ]
    return wide(
        pd.DataFrame(rows, columns=["steps", "delta", "unsafe", "reward", "tv_opt"]),
        ["unsafe", "reward", "tv_opt"],
    )


def rounds():
    return pd.DataFrame(
        [(s, k, 0.1 * k, 0.5 - 0.1 * k, 2 - k) for s in (0, 1) for k in (1, 2, 3)],
        columns=["seed", "round", "lam", "cost", "dual"],
    )


def limits():
    return pd.DataFrame(
        [(n, v, v, v / 2) for n in ("mean", "clipped") for v in (0.1, 0.2)],
        columns=["constraint", "limit", "reward", "unsafe"],
    )


G = np.random.default_rng(0)
PLANE = dict(x="kl_ref", y="reward", xlabel="KL", ylabel="E[r]", title="Methods")
DRAW = {
    "training": lambda: dpo_and_safety.training({"dpo": log(), "dpo_soft": log()}),
    "implicit": lambda: dpo_and_safety.implicit_reward(
        G.normal(size=9), G.normal(size=9), unsafe=np.arange(9) % 2 == 0
    ),
    "frontier": lambda: dpo_and_safety.frontier(
        np.array([[1, 0.5, 0.1], [0.5, 0.9, 0.4]]), points(3), n=3
    ),
    "frontier_one_seed": lambda: dpo_and_safety.frontier(
        np.array([[1, 0.5, 0.1], [0.5, 0.9, 0.4]]), points(1), n=1
    ),
    "distance": lambda: dpo_and_safety.distance(
        distances(), x="pairs", xlabel="training pairs", n=3
    ),
    "accuracies": lambda: dpo_and_safety.accuracies(
        pd.DataFrame(
            [("dpo", 0.6, 0.5, 0.7, 10)], columns=["method", "accuracy", "low", "high", "n"]
        )
    ),
    "world": lambda: dpo_and_safety.world_map(*np.ones((3, 2, 4)), ["a", "b"]),
    "plane": lambda: dpo_and_safety.plane(
        points(3), **PLANE, n=3, exact=[(0.5, 1.0, "π*")], curve=np.eye(2)
    ),
    "plane_one_seed": lambda: dpo_and_safety.plane(points(1), **PLANE, n=1),
    "deltas": lambda: dpo_and_safety.deltas(margins(), n=3),
    "dual": lambda: dpo_and_safety.dual_descent(
        np.eye(2), rounds(), lam_star={0: 0.3, 1: 0.2}, cost_limit=0.0
    ),
    "mean_constraint": lambda: dpo_and_safety.mean_constraint(limits()),
    "cost": lambda: dpo_and_safety.cost_frontier(np.ones((3, 4)), {"here": (0.0, 1.0, "#222222")}),
}


@pytest.mark.parametrize("name", DRAW)
def test_figures_return_and_save(name, tmp_path):
    figure = DRAW[name]()
    assert isinstance(figure, matplotlib.figure.Figure) and figure._repr_png_()[:4] == b"\x89PNG"
    assert style.save(figure, tmp_path / name) == [f"{name}.png", f"{name}.svg"]
    text = (tmp_path / f"{name}.svg").read_text()
    assert "dc:date" not in text and "Matplotlib v" not in text
    assert b"Software" not in (tmp_path / f"{name}.png").read_bytes()


def test_bytes_do_not_depend_on_the_process(tmp_path):
    first = DRAW["frontier"]()
    one = style.save(first, tmp_path / "one")
    with matplotlib.rc_context(
        {"font.size": 20, "axes.grid.axis": "x", "lines.linewidth": 9, "svg.hashsalt": "other"}
    ):
        matplotlib.rcParams["axes.titlesize"] = 30
        two = style.save(DRAW["frontier"](), tmp_path / "two")
    for a, b in zip(one, two):
        assert (tmp_path / a).read_bytes() == (tmp_path / b).read_bytes()


def test_every_training_length_is_drawn():
    assert len(dpo_and_safety.deltas(margins(), n=3).axes[0].lines) == 6


def test_every_method_has_one_colour():
    baselines = """dpo dpo_harmless dpo_safebetter safedpo cdpo sacpo psacpo mocan mocan_soft pecan modpo
        bfpo bso bso[margin=5] ppo_lagrangian fixed_lambda ref exact""".split()
    for together in (baselines, ["ref", "exact", "dpo", "dpo_soft", "bag_of_words"]):
        assert len({style.COLOURS[m] for m in together}) == len(together), together


def test_intervals_reach_from_low_to_high_and_are_drawn_for_several_seeds_only():
    one, several = (DRAW[name]().axes[0] for name in ("plane_one_seed", "plane"))
    assert [len(c.get_children()) for c in one.containers] == [1, 1], "a point alone"
    (across, up) = several.containers[0][2]
    table = points(3)[:2]
    assert np.allclose(
        [line[:, 0] for line in across.get_segments()], table[["kl_ref_low", "kl_ref_high"]]
    )
    assert np.allclose(
        [line[:, 1] for line in up.get_segments()], table[["reward_low", "reward_high"]]
    )
    (shade,) = (c for c in dpo_and_safety.deltas(margins(), n=3).axes[0].collections[:1])
    ends = shade.get_datalim(several.transData)
    assert len(dpo_and_safety.deltas(margins(), n=1).axes[0].collections) == 0 and ends.height > 0


def test_verdicts_are_drawn_as_they_were_counted():
    counts = pd.DataFrame(0, index=["one $x", "two"], columns=list(style.VERDICTS))
    counts.loc["two", ["holds", "undecided"]] = 2, 31
    (ax,) = verdicts(counts).axes
    words = [text.get_text() for text in ax.texts if text.get_text()]
    assert words == ["2", "31", "one $x", "two"]
    bars = [bar for bar in ax.patches if bar.get_width()]
    assert [(bar.get_x(), bar.get_width(), bar.get_y() > 0.5) for bar in bars] == [
        (0, 2, True),
        (2, 31, True),
    ]
    assert verdicts(counts)._repr_png_() == verdicts(counts)._repr_png_()
