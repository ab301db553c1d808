"""Drawings. Every function takes tables and returns a Figure; colour = method, the same everywhere.

Intervals are 95 % t-intervals over seeds where there are several; with one seed there is none, and the
label says n = 1. PNG and SVG are byte-stable: no date, no version, a fixed hash salt.
"""

import itertools

import numpy as np

from .style import COLOURS, NAMES, new_axes, styled


@styled
def training(logs):
    """Loss and log-ratios over the steps. `logs`: {method: training log}; two panels."""
    figure, (left, right) = new_axes(2)
    for method, log in logs.items():
        left.plot(
            log.step,
            log.loss.rolling(10, min_periods=1).mean(),
            color=COLOURS[method],
            label=NAMES[method],
        )
    left.axhline(np.log(2), color="#999999", lw=0.8, ls="--")
    left.annotate(
        "ln 2",
        (1, np.log(2)),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    (
        left.set(
            xlabel="step", ylabel="loss (nats a pair, mean of 10 steps)", title="Training loss"
        ),
        left.legend(),
    )
    log = next(iter(logs.values()))
    for side in ("chosen", "rejected"):
        right.plot(
            log.step, log[side].rolling(10, min_periods=1).mean(), color=COLOURS[side], label=side
        )
    right.axhline(0, color="#999999", lw=0.8, ls="--")
    right.set(
        xlabel="step",
        ylabel="log-ratio to the reference (nats)",
        title="Chosen and rejected responses",
    )
    right.legend()
    return figure


@styled
def implicit_reward(reward, implicit, *, unsafe):
    """Scatter of the implicit reward beta log(pi / pi_ref) against the true reward, both centred per prompt."""
    figure, ax = new_axes()
    for mask, colour, name in ((~unsafe, "#3b6fb6", "safe"), (unsafe, "#c4504b", "unsafe")):
        ax.scatter(
            reward[mask],
            implicit[mask],
            s=5,
            alpha=0.35,
            color=colour,
            label=name,
            linewidths=0,
            rasterized=True,
        )
    ends = np.array([reward.min(), reward.max()])
    ax.plot(ends, ends, color="#222222", lw=1, label="exact: slope 1")
    ax.set(
        xlabel="true reward r, centred per prompt",
        ylabel="implicit reward β log(π / π_ref)",
        title="What DPO has learned about r",
    )
    ax.legend(markerscale=3)
    return figure


@styled
def frontier(curve, points, *, n):
    """The exact reward-KL frontier and trained policies. `curve` rows (beta, E[r], KL); `points` a table with
    columns method, beta, kl_ref, reward and their _low and _high."""
    figure, ax = new_axes(width=6, height=4)
    ax.plot(
        curve[:, 2], curve[:, 1], color=COLOURS["exact"], lw=1.5, label="exact frontier", zorder=1
    )
    for method, rows in points.groupby("method", sort=False):
        bars = {}
        if n > 1:
            bars = {
                "xerr": np.stack([rows.kl_ref - rows.kl_ref_low, rows.kl_ref_high - rows.kl_ref]),
                "yerr": np.stack([rows.reward - rows.reward_low, rows.reward_high - rows.reward]),
            }
        ax.errorbar(
            rows.kl_ref,
            rows.reward,
            **bars,
            fmt="o",
            ms=5,
            color=COLOURS[method],
            label=f"{NAMES[method]} (n = {n})",
            capsize=2,
            lw=1,
        )
        for row in rows.itertuples():
            if row.beta:
                ax.annotate(
                    f"β {row.beta:g}",
                    (row.kl_ref, row.reward),
                    xytext=(6, -10),
                    textcoords="offset points",
                    fontsize=8,
                )
    ax.set(
        xlabel="KL to the reference (nats)",
        ylabel="E[r], held-out nouns",
        title="Reward against KL",
    )
    ax.legend(loc="lower right")
    return figure


@styled
def distance(table, *, x, xlabel, n):
    """KL to the exact optimum against a quantity x, a line a method. Columns method, x, kl_opt and its ends."""
    figure, ax = new_axes()
    for method, rows in table.groupby("method", sort=False):
        ax.plot(
            rows[x],
            rows.kl_opt,
            "o-",
            ms=4,
            color=COLOURS[method],
            label=f"{NAMES[method]} (n = {n})",
        )
        if n > 1:
            ax.fill_between(
                rows[x], rows.kl_opt_low, rows.kl_opt_high, color=COLOURS[method], alpha=0.18, lw=0
            )
    ax.set(
        xlabel=xlabel,
        ylabel="KL(θ‖π*) (nats)",
        xscale="log",
        yscale="log",
        title="Distance to the exact optimum",
    )
    ax.set_xticks(sorted(set(table[x])), labels=[f"{v:,}" for v in sorted(set(table[x]))])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend()
    return figure


@styled
def accuracies(table):
    """Held-out pair accuracy with bootstrap intervals. Columns method, accuracy, low, high, n (pairs)."""
    figure, ax = new_axes(height=0.7 + 0.5 * len(table))
    for y, row in enumerate(table.itertuples()):
        ax.errorbar(
            row.accuracy,
            y,
            xerr=[[row.accuracy - row.low], [row.high - row.accuracy]],
            fmt="o",
            capsize=3,
            color=COLOURS[row.method],
        )
    ax.axvline(0.5, color="#999999", lw=0.8, ls="--")
    ax.set(
        yticks=range(len(table)),
        yticklabels=[NAMES[m] for m in table.method],
        ylim=(-0.6, len(table) - 0.4),
    )
    ax.set(
        xlabel=f"accuracy on {table.n.max():,} held-out pairs (95 % bootstrap interval; dashed: chance)"
    )
    return figure


@styled
def world_map(reward, cost, behaviour, titles):
    """Reward against cost of every response, a panel an intent; area = probability under the behaviour."""
    figure, axes = new_axes(columns=len(titles), width=3.6, height=3.4)
    for ax, r, c, b, title in zip(axes, reward, cost, behaviour, titles):
        ax.scatter(
            c, r, s=8 + 5000 * b, c=np.where(c > 0, "#c4504b", "#3b6fb6"), alpha=0.35, linewidths=0
        )
        ax.axvline(0, color="#666666", lw=0.8, ls="--")
        ax.set(xlabel="cost c (unsafe: c > 0)", title=title, xlim=(-2, 3.2), ylim=(-4, 4.2))
    axes[0].set(ylabel="reward r (helpfulness)")
    return figure


@styled
def plane(points, *, x, y, xlabel, ylabel, title, n, curve=None, exact=()):
    """Methods in a plane of two quantities: `points` has method, x, y and their _low and _high.

    `curve` [K, 2] is an exact frontier, `exact` a list of (x, y, words) of exact optima.
    """
    figure, ax = new_axes(width=7, height=4.4)
    if curve is not None:
        ax.plot(
            curve[:, 0],
            curve[:, 1],
            color=COLOURS["exact"],
            lw=1.5,
            label="exact frontier",
            zorder=1,
        )
    for method, rows in points.groupby("method", sort=False):
        ends = lambda q, rows=rows: np.stack(
            [rows[q] - rows[f"{q}_low"], rows[f"{q}_high"] - rows[q]]
        )
        bars = dict(xerr=ends(x), yerr=ends(y)) if n > 1 else {}
        ax.errorbar(
            rows[x],
            rows[y],
            **bars,
            fmt="o",
            ms=5,
            capsize=2,
            lw=1,
            color=COLOURS[method],
            label=NAMES[method],
        )
    for a, b, words in exact:
        ax.plot(a, b, "*", ms=11, color=COLOURS["exact"], zorder=3)
        ax.annotate(
            words, (a, b), xytext=(0, 8), textcoords="offset points", fontsize=9, ha="center"
        )
    ax.set(xlabel=xlabel, ylabel=ylabel, title=f"{title} (n = {n})")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def deltas(table, *, n):
    """What the margin does at several training lengths. Columns steps, delta, and unsafe, reward, tv_opt with ends."""
    figure, axes = new_axes(3, width=3.7, height=3.3)
    shades = ["#f3b878", "#e0872b", "#8c5a17", "#4a2f0b", "#9a9a9a"]
    words = (("unsafe", "P(unsafe)"), ("reward", "E[r]"), ("tv_opt", "total variation to π*_c"))
    for ax, (q, label) in zip(axes, words):
        for (steps, rows), shade in zip(table.groupby("steps"), itertools.cycle(shades)):
            ax.plot(rows.delta, rows[q], "o-", ms=4, color=shade, label=f"{steps:,} steps")
            if n > 1:
                ax.fill_between(
                    rows.delta, rows[f"{q}_low"], rows[f"{q}_high"], color=shade, alpha=0.2, lw=0
                )
        ax.set(xlabel="Δ (nats)", ylabel=label)
    axes[0].legend()
    axes[0].set(title=f"SafeDPO's margin (n = {n})")
    return figure


@styled
def dual_descent(curve, rounds, *, lam_star, cost_limit):
    """g(lambda) with the loop's steps on it, then lambda and E[c] by round.

    `curve` [K, 2] (lambda, g); `rounds` a table with seed, round, lam, cost, dual; `lam_star` {seed: value}.
    """
    figure, (left, middle, right) = new_axes(3, width=3.7, height=3.3)
    first = rounds[rounds.seed == rounds.seed.min()]
    left.plot(curve[:, 0], curve[:, 1], color=COLOURS["exact"], lw=1.5, label="g(λ), exact")
    left.plot(
        first.lam,
        first.dual,
        "o",
        ms=5,
        color=COLOURS["cdpo"],
        alpha=0.7,
        label="rounds of the loop",
    )
    left.axvline(lam_star[first.seed.iloc[0]], color="#999999", lw=0.8, ls="--")
    left.set(xlabel="λ", ylabel="g (units of reward)", title="The dual, one seed"), left.legend()
    for seed, rows in rounds.groupby("seed"):
        middle.plot(rows["round"], rows.lam, "o-", ms=3, color=COLOURS["cdpo"], alpha=0.7)
        middle.axhline(lam_star[seed], color="#999999", lw=0.8, ls="--")
        right.plot(rows["round"], rows.cost, "o-", ms=3, color=COLOURS["cdpo"], alpha=0.7)
    right.axhline(cost_limit, color="#999999", lw=0.8, ls="--")
    middle.set(
        xlabel="round", ylabel="λ (dashed: exact λ*)", title=f"Every seed (n = {len(lam_star)})"
    )
    right.set(xlabel="round", ylabel="E[c] (dashed: the limit)")
    [ax.xaxis.get_major_locator().set_params(integer=True) for ax in (middle, right)]
    return figure


@styled
def mean_constraint(table):
    """P(unsafe) of the exact optimum against its E[r], under a limit on E[c] and under one on E[max(c, 0)].

    Columns constraint, limit, reward, unsafe.
    """
    figure, ax = new_axes()
    looks = ((COLOURS["cdpo"], (-5, 5), "right"), (COLOURS["safedpo"], (4, -11), "left"))
    for (name, rows), (colour, place, side) in zip(table.groupby("constraint", sort=False), looks):
        ax.plot(rows.unsafe, rows.reward, "o-", ms=4, color=colour, label=name)
        for row in rows.itertuples():
            where = dict(
                xy=(row.unsafe, row.reward), xytext=place, textcoords="offset points", ha=side
            )
            ax.annotate(f"{row.limit:g}", fontsize=8, **where)
    ax.set(xlabel="P(unsafe)", ylabel="E[r]", title="Exact optima, by their limit")
    ax.legend(loc="lower right")
    return figure


@styled
def cost_frontier(rows, points):
    """The exact reward-cost frontier. `rows` (lambda, E[r], E[c], P(unsafe)); `points` {name: (E[c], E[r], colour)}."""
    figure, ax = new_axes()
    ax.plot(rows[:, 2], rows[:, 1], color=COLOURS["exact"], lw=1.5, label="exact frontier over λ")
    for name, (c, r, colour) in points.items():
        ax.plot(c, r, "o", ms=6, color=colour, label=name)
    ax.axvline(0, color="#666666", lw=0.8, ls="--")
    ax.set(xlabel="E[c]", ylabel="E[r]", title="What safety costs")
    ax.legend(loc="upper left")
    return figure
