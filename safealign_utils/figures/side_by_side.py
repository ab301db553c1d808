"""Drawings of notebook 06: methods and combinations of levers side by side."""

import numpy as np

from .style import (
    COLOURS,
    INK,
    MARKERS,
    NAMES,
    SAFE,
    ends,
    legend_beside,
    new_axes,
    points_with_ends,
    styled,
)
from .style import stars as draw_stars

LABELS = NAMES | {
    "dpo": "DPO-helpful",
    "safedpo": "SafeDPO, Δ = 0",
    "cdpo": "C-DPO, soft labels",
}
LEARNS_FROM = dict.fromkeys(("modpo", "mocan", "cdpo", "cdpo_coin", "sacpo"), "scores of r and c")
LEARNS_FROM |= dict.fromkeys(("selective", "dog_d_dpo", "dog_d_safedpo"), "a lever on top")
LEARNS_FROM |= {"ppo_lagrangian": "on-policy", "ref": ""}
CELLS = {  # (winner, margin): (colour, marker, words)
    ("helpful", "none"): (COLOURS["dpo"], "o", "helpful labels"),
    ("helpful", "delta"): ("#4c9a6a", "^", "helpful labels, Δ"),
    ("T", "none"): (COLOURS["safedpo"], "s", "T"),
    ("T", "delta"): ("#c4504b", "D", "T, Δ"),
}


def _exact(ax, curves, stars):
    """Exact frontiers {words: [K, 2]} and optima (harmless, E[r], words), in black."""
    for (words, line), dash in zip(curves.items(), ("-", "--"), strict=False):
        ax.plot(*np.asarray(line).T, color=COLOURS["exact"], lw=1.2, ls=dash, label=words, zorder=1)
    draw_stars(ax, stars, ms=13, zorder=1.5)


def _point(ax, row, n, **look):
    points_with_ends(ax, row, "harmless", "reward", n, lw=0.9, zorder=3, **look)


@styled
def methods(points, *, curves, stars, n):
    """Methods in the plane of harmlessness and helpfulness, with the exact frontiers.

    `points`: method, and harmless (percent), reward with their ends. The legend says what a method
    learns from.
    """
    figure, ax = new_axes(width=7.6, height=5)
    _exact(ax, curves, stars)
    for row in points.to_dict("records"):
        m = row["method"]
        source = LEARNS_FROM.get(m, "labels")
        label = f"{LABELS[m]} ({source})" if source else LABELS[m]
        _point(ax, row, n, ms=6, color=COLOURS[m], label=label, marker=MARKERS[m])
    ax.set(xlabel="harmless: 100 (1 − P(unsafe)), held-out nouns", ylabel="helpfulness: E[r]")
    ax.set_title(f"Equal steps (n = {n})")
    ax.margins(y=0.08)
    legend_beside(ax)
    return figure


@styled
def cells(points, *, curves, stars, n):
    """The cells of the factorial in the same plane, a panel for all and one for selected tokens.

    `points`: pairs, winner, margin, tokens, and harmless, reward with their ends. Colour and marker
    = winner and margin, filled = all pairs, hollow = DOG-D's.
    """
    figure, axes = new_axes(2, width=5.4, height=4)
    groups = points.groupby("tokens", sort=False)
    for ax, (tokens, part) in zip(axes, groups, strict=True):
        _exact(ax, curves if tokens == "all" else {}, stars)
        for row in part.to_dict("records"):
            colour, marker, words = CELLS[row["winner"], row["margin"]]
            every = row["pairs"] == "all"
            look = dict(color=colour, markerfacecolor=colour if every else "white", marker=marker)
            _point(ax, row, n, ms=6, label=words if every else f"{words}; DOG-D's pairs", **look)
        title = "All tokens" if tokens == "all" else "Selective-DPO"
        ax.set(xlabel="harmless, %", title=f"{title} (n = {n})")
    wide, high = np.array([ax.get_xlim() for ax in axes]), np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set(xlim=(wide.min(), wide.max()), ylim=(high.min(), high.max() + 0.1))
    axes[0].set_ylabel("helpfulness: E[r]")
    legend_beside(axes[1], *axes[0].get_legend_handles_labels())
    return figure


@styled
def effects(table, *, quantities, n, exact=None):
    """Effects with intervals, a panel a quantity {column: words}. `table`: effect, and q with ends.

    `exact` {(effect, column): value}: what the exact optima give, as stars.
    """
    exact = exact or {}
    figure, axes = new_axes(len(quantities), width=4, height=0.3 * len(table) + 1.1)
    axes, y = np.atleast_1d(axes), np.arange(len(table))
    colours = np.where(table.effect.str.contains(" x "), COLOURS["cdpo"], SAFE)
    for ax, (q, words) in zip(axes, quantities.items(), strict=True):
        if n > 1:
            bars = dict(xerr=ends(table, q), ecolor=colours, elinewidth=1.4)
            ax.errorbar(table[q], y, fmt="none", **bars)
        ax.scatter(table[q], y, c=colours, s=26, zorder=3)
        for i, effect in enumerate(table.effect):
            if (effect, q) in exact:
                ax.plot(exact[effect, q], i, "*", ms=9, color=COLOURS["exact"], zorder=4)
        ax.axvline(0, color=INK, lw=0.9)
        ax.set(xlabel=words, ylim=(len(table) - 0.5, -0.5))
        ax.set_yticks(y, [""] * len(y))
    axes[0].set_yticks(y, list(table.effect.str.replace(" x ", " × ")))
    star = "; star: exact optima" if exact else ""
    axes[0].set_title(f"Effects (n = {n}{star})")
    return figure
