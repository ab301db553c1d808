"""Drawings of notebooks 00 to 03: the world, DPO, SafeDPO and C-DPO."""

import itertools

import numpy as np

from .style import (
    COLOURS,
    DASHED,
    INK,
    MARKERS,
    NAMES,
    SAFE,
    UNSAFE,
    band,
    legend_beside,
    log_ticks,
    new_axes,
    note,
    points_with_ends,
    stars,
    styled,
)


def _look(method, label):
    return dict(color=COLOURS[method], marker=MARKERS[method], label=label)


def _smooth(column):
    return column.rolling(10, min_periods=1).mean()


@styled
def training(logs):
    """Loss and log-ratios over the steps. `logs`: {method: training log}; two panels."""
    figure, (left, right) = new_axes(2)
    for method, log in logs.items():
        left.plot(log.step, _smooth(log.loss), color=COLOURS[method], label=NAMES[method])
    left.axhline(np.log(2), **DASHED)
    note(left, "ln 2", (1, np.log(2)), (0, 3), fontsize=8, color="#666666")
    left.set(xlabel="step", ylabel="loss (nats a pair, mean of 10 steps)", title="Training loss")
    left.legend()
    log = next(iter(logs.values()))
    for side, dash in (("chosen", "-"), ("rejected", "--")):
        right.plot(log.step, _smooth(log[side]), dash, color=COLOURS[side], label=side)
    right.axhline(0, **DASHED)
    right.set(xlabel="step", ylabel="log-ratio to the reference (nats)")
    right.set(title="Chosen and rejected responses")
    right.legend()
    return figure


@styled
def implicit_reward(reward, implicit, *, unsafe):
    """The implicit reward beta log(pi / pi_ref) against the true one, both centred per prompt."""
    figure, ax = new_axes()
    dots = dict(s=7, alpha=0.35, rasterized=True)
    safe, other = dict(marker="o", linewidths=0), dict(marker="x", linewidths=0.6)
    for mask, colour, name, look in (
        (~unsafe, SAFE, "safe", safe),
        (unsafe, UNSAFE, "unsafe", other),
    ):
        ax.scatter(reward[mask], implicit[mask], color=colour, label=name, **dots, **look)
    line = np.array([reward.min(), reward.max()])
    ax.plot(line, line, color=INK, lw=1, label="exact: slope 1")
    ax.set(xlabel="true reward r, centred per prompt", ylabel="implicit reward β log(π / π_ref)")
    ax.set(title="What DPO has learned about r")
    ax.legend(markerscale=3)
    return figure


@styled
def frontier(curve, points, *, n):
    """The exact reward-KL frontier and trained policies.

    `curve` rows (beta, E[r], KL); `points`: method, beta, and kl_ref, reward with their ends.
    """
    figure, ax = new_axes(width=6, height=4)
    _curve(ax, curve[:, 2], curve[:, 1])
    for method, rows in points.groupby("method", sort=False):
        look = _look(method, f"{NAMES[method]} (n = {n})")
        points_with_ends(ax, rows, "kl_ref", "reward", n, ms=5, lw=1, **look)
        for row in rows[rows.beta != 0].itertuples():
            note(ax, f"β {row.beta:g}", (row.kl_ref, row.reward), (6, -10), fontsize=8)
    ax.set(xlabel="KL to the reference (nats)", ylabel="E[r], held-out nouns")
    ax.set(title="Reward against KL")
    ax.legend(loc="lower right")
    return figure


def _curve(ax, x, y, label="exact frontier"):
    ax.plot(x, y, color=COLOURS["exact"], lw=1.5, label=label, zorder=1)


@styled
def distance(table, *, x, xlabel, n):
    """KL to the exact optimum against x. `table`: method, x, and kl_opt with its ends."""
    figure, ax = new_axes()
    for method, rows in table.groupby("method", sort=False):
        look = _look(method, f"{NAMES[method]} (n = {n})")
        band(ax, rows, x, "kl_opt", n, shade=0.18, **look)
    ax.set(xlabel=xlabel, ylabel="KL(θ‖π*) (nats)", xscale="log", yscale="log")
    ax.set(title="Distance to the exact optimum")
    ax.set_xticks(sorted(set(table[x])), labels=[f"{v:,}" for v in sorted(set(table[x]))])
    ax.minorticks_off()
    log_ticks(ax.yaxis, *ax.get_ylim())
    ax.legend()
    return figure


@styled
def accuracies(table):
    """Held-out pair accuracy with bootstrap intervals: method, accuracy, low, high, n (pairs)."""
    figure, ax = new_axes(height=0.7 + 0.5 * len(table))
    for y, row in enumerate(table.itertuples()):
        bar = [[row.accuracy - row.low], [row.high - row.accuracy]]
        ax.errorbar(row.accuracy, y, xerr=bar, fmt="o", capsize=3, color=COLOURS[row.method])
    ax.axvline(0.5, **DASHED)
    ax.set(yticks=range(len(table)), yticklabels=[NAMES[m] for m in table.method])
    words = "held-out pairs (95 % bootstrap interval; dashed: chance)"
    ax.set(ylim=(-0.6, len(table) - 0.4), xlabel=f"accuracy on {table.n.max():,} {words}")
    return figure


@styled
def world_map(reward, cost, behaviour, titles):
    """Reward against cost of every response, a panel an intent; area = behaviour."""
    figure, axes = new_axes(columns=len(titles), width=3.6, height=3.4)
    for ax, r, c, b, title in zip(axes, reward, cost, behaviour, titles, strict=True):
        ax.scatter(c, r, s=8 + 5000 * b, c=np.where(c > 0, UNSAFE, SAFE), alpha=0.35, linewidths=0)
        ax.axvline(0, **DASHED | {"color": "#666666"})
        ax.set(xlabel="cost c (unsafe: c > 0)", title=title, xlim=(-2, 3.2), ylim=(-4, 4.2))
    axes[0].set(ylabel="reward r (helpfulness)")
    return figure


@styled
def plane(points, *, x, y, title, n, curve=None, exact=(), **labels):
    """Methods in a plane of two quantities: `points` has method, and x, y with their ends.

    `curve` [K, 2] is an exact frontier, `exact` a list of (x, y, words) of exact optima, `labels`
    are xlabel and ylabel.
    """
    figure, ax = new_axes(width=7, height=4.4)
    if curve is not None:
        _curve(ax, *curve.T)
    for method, rows in points.groupby("method", sort=False):
        points_with_ends(ax, rows, x, y, n, ms=6, lw=1, **_look(method, NAMES[method]))
    stars(ax, exact, ms=11, zorder=3)
    ax.set(title=f"{title} (n = {n})", **labels)
    legend_beside(ax)
    return figure


@styled
def deltas(table, *, n):
    """What the margin does at several training lengths.

    Columns steps, delta, and unsafe, reward, tv_opt with their ends.
    """
    figure, axes = new_axes(3, width=3.7, height=3.3)
    shades = itertools.cycle(["#f3b878", "#e0872b", "#8c5a17", "#4a2f0b", "#9a9a9a"])
    colours = dict(zip(sorted(table.steps.unique()), shades, strict=False))
    words = {"unsafe": "P(unsafe)", "reward": "E[r]", "tv_opt": "total variation to π*_c"}
    for ax, (q, label) in zip(axes, words.items(), strict=True):
        for steps, rows in table.groupby("steps"):
            look = dict(color=colours[steps], label=f"{steps:,} steps")
            band(ax, rows, "delta", q, n, shade=0.2, **look)
        ax.set(xlabel="Δ (nats)", ylabel=label)
    axes[0].legend()
    axes[0].set(title=f"SafeDPO's margin (n = {n})")
    return figure


@styled
def dual_descent(curve, rounds, *, lam_star, cost_limit):
    """g(lambda) with the loop's steps on it, then lambda and E[c] by round.

    `curve` [K, 2] (lambda, g); `rounds`: seed, round, lam, cost, dual; `lam_star` {seed: value}.
    """
    figure, (left, middle, right) = new_axes(3, width=3.7, height=3.3)
    first = rounds[rounds.seed == rounds.seed.min()]
    dots = dict(color=COLOURS["cdpo"], alpha=0.7)
    left.plot(*curve.T, color=COLOURS["exact"], lw=1.5, label="g(λ), exact")
    left.plot(first.lam, first.dual, "o", ms=5, label="rounds of the loop", **dots)
    left.axvline(lam_star[first.seed.iloc[0]], **DASHED)
    left.set(xlabel="λ", ylabel="g (units of reward)", title="The dual, one seed")
    left.legend()
    for seed, rows in rounds.groupby("seed"):
        middle.plot(rows["round"], rows.lam, "o-", ms=3, **dots)
        middle.axhline(lam_star[seed], **DASHED)
        right.plot(rows["round"], rows.cost, "o-", ms=3, **dots)
    right.axhline(cost_limit, **DASHED)
    middle.set(xlabel="round", ylabel="λ (dashed: exact λ*)")
    middle.set(title=f"Every seed (n = {len(lam_star)})")
    right.set(xlabel="round", ylabel="E[c] (dashed: the limit)")
    for ax in (middle, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def mean_constraint(table):
    """P(unsafe) of the exact optimum against its E[r], under limits on E[c] and on E[max(c, 0)].

    Columns constraint, limit, reward, unsafe.
    """
    figure, ax = new_axes()
    groups = [rows.sort_values("unsafe") for _, rows in table.groupby("constraint", sort=False)]
    for rows, other, method in zip(groups, groups[::-1], ("cdpo", "safedpo"), strict=True):
        label = rows.constraint.iloc[0]
        ax.plot(rows.unsafe, rows.reward, ms=4, **_look(method, label))
        higher = rows.reward >= np.interp(rows.unsafe, other.unsafe, other.reward)
        for row, above in zip(rows.itertuples(), higher, strict=True):
            shift, side = ((-5, 5), "right") if above else ((5, -11), "left")
            note(ax, f"{row.limit:g}", (row.unsafe, row.reward), shift, fontsize=8, ha=side)
    ax.set(xlabel="P(unsafe)", ylabel="E[r]", title="Exact optima, by their limit")
    ax.legend(loc="lower right")
    return figure


@styled
def cost_frontier(rows, points):
    """The exact reward-cost frontier.

    `rows` (lambda, E[r], E[c], P(unsafe)); `points` {name: (E[c], E[r], colour)}.
    """
    figure, ax = new_axes()
    ax.plot(rows[:, 2], rows[:, 1], color=COLOURS["exact"], lw=1.5)
    words = dict(textcoords="offset points", fontsize=8.5)
    _, r, c, _ = rows[len(rows) // 10]
    ax.annotate("exact frontier over λ", (c, r), xytext=(-8, 2), ha="right", **words)
    furthest = max(c for c, *_ in points.values())
    for (name, (c, r, colour)), marker in zip(points.items(), "osD^v", strict=False):
        ax.plot(c, r, marker, ms=6, color=colour)
        side = dict(xytext=(4, 7), ha="right") if c == furthest else dict(xytext=(8, -8))
        ax.annotate(name, (c, r), **words | side)
    ax.axvline(0, **DASHED | {"color": "#666666"})
    ax.margins(0.12)
    ax.set(xlabel="E[c]", ylabel="E[r]", title="What safety costs")
    return figure
