"""Drawings of what token scoring and pair selection choose; same rules as `figures.py`."""

import numpy as np
import seaborn

from .style import new_axes, styled

RULES = {
    "dpo": ("#3b6fb6", "DPO, all tokens"),
    "signed": ("#e0872b", "Selective-DPO"),
    "random": ("#8a8a8a", "random"),
    "beta": ("#4c9a6a", "DPO, β times the share"),
    "oracle": ("#8d3fa0", "oracle: |advantage|"),
    "inverted": ("#c4504b", "inverted score"),
    "absolute": ("#2f9c95", "|score|"),
    "frozen": ("#d76fb0", "frozen score"),
    "dog": ("#c4504b", "DOG"),
    "dog_d": ("#e0872b", "DOG-D"),
    "literal": ("#b58b6b", "DOG-D, literal reading"),
    "log_det": ("#8d3fa0", "log-det"),
    "sharp_log_det": ("#5a2a82", "log-det, a tenth of the ridge"),
    "safety_log_det": ("#d76fb0", "log-det, mixed pairs first"),
    "stratified": ("#222222", "stratified oracle"),
    "random_copies": ("#c9c9c9", "random, copies kept"),
    "k_means": ("#2f9c95", "k-means"),
    "facility": ("#6f8a2c", "facility location"),
    "k_centre": ("#7cc5c0", "k-centre"),
    "largest_margin": ("#3b6fb6", "largest margin"),
    "smallest_margin": ("#9fb4d6", "smallest margin"),
    "easiest_half": ("#a0a83a", "easiest half"),
    "full_data": ("#3b6fb6", "all pairs"),
    "all_epochs": ("#1f3f6b", "all pairs, as many epochs"),
    "ref": ("#7f7f7f", "reference"),
}


def name(rule):
    return RULES.get(rule, ("#222222", rule))[1]


def _line(ax, rule, x, part, quantity):
    bar = [part[quantity] - part[f"{quantity}_low"], part[f"{quantity}_high"] - part[quantity]]
    ax.errorbar(
        x,
        part[quantity],
        bar,
        color=RULES[rule][0],
        marker="o",
        ms=4,
        lw=1.2,
        capsize=2,
        label=name(rule),
    )


@styled
def coloured_tokens(rows, *, title):
    """Text with a colour behind each token. `rows`: (label, words, values); red > 0, blue < 0, one scale a row."""
    widest = max(sum(len(w) + 1.3 for w in words) for _, words, _ in rows)
    figure, ax = new_axes(width=0.072 * widest + 1.8, height=0.36 * len(rows) + 0.5)
    for i, (label, words, values) in enumerate(rows):
        scale, x = max(float(np.abs(values).max()), 1e-9), 0.0
        for word, value in zip(words, np.asarray(values) / scale):
            colour = seaborn.color_palette("vlag", as_cmap=True)(0.5 + 0.5 * value)
            box = dict(facecolor=colour, edgecolor="none", boxstyle="round,pad=0.18")
            ink = "white" if abs(value) > 0.7 else "#222222"
            ax.text(x, -i, word, family="monospace", fontsize=7.6, va="center", color=ink, bbox=box)
            x += len(word) + 1.3
        ax.text(-1, -i, label, ha="right", va="center", fontsize=8, color="#444444")
    ax.set(xlim=(-0.5, widest), ylim=(-len(rows) + 0.4, 0.6), title=title)
    ax.set_axis_off()
    return figure


@styled
def restoring_force(points, *, start, n):
    """E[r] at the end against the score reference's. `points`: own, reward (+ _low, _high), reference, keep."""
    figure, ax = new_axes(width=5.6, height=4.2)
    low, high = (f(points.own.tolist() + points.reward.tolist()) for f in (min, max))
    ax.plot(
        [low, high], [low, high], color="#222222", lw=0.9, label="as good as its score reference"
    )
    (
        ax.axhline(start, color="#999999", lw=0.8, ls="--"),
        ax.annotate("start", (low, start), fontsize=8, color="#666666", va="bottom"),
    )
    palette = dict(zip(dict.fromkeys(points.reference), seaborn.color_palette("deep")))
    markers = dict(zip(sorted(points.keep.unique()), "ovsD^P"))
    for row in points.itertuples():
        bar = [[row.reward - row.reward_low], [row.reward_high - row.reward]]
        ax.errorbar(
            row.own,
            row.reward,
            bar,
            color=palette[row.reference],
            marker=markers[row.keep],
            ms=6,
            lw=1,
            capsize=2,
        )
    for reference, colour in palette.items():
        ax.scatter([], [], color=colour, label=f"score reference: {reference}")
    for keep, marker in markers.items():
        ax.scatter([], [], color="#666666", marker=marker, label=f"share {keep:.0%}")
    ax.set(
        xlabel="E[r] of the score reference",
        ylabel=f"E[r] of the trained policy (n = {n})",
        title="Where Selective-DPO ends",
    )
    ax.legend(fontsize=8)
    return figure


@styled
def shares(table, *, n):
    """KL to pi* and frontier gap against the share kept. `table`: rule, keep, kl_opt, frontier_gap (+ _low, _high)."""
    figure, axes = new_axes(2)
    quantities = {
        "kl_opt": "KL(θ‖π*), nats",
        "frontier_gap": "E[r] below the frontier at its own KL",
    }
    dpo, masked = table[table.rule == "dpo"].iloc[0], table[table.rule != "dpo"]
    for ax, (quantity, words) in zip(axes, quantities.items()):
        ax.axhline(dpo[quantity], color=RULES["dpo"][0], lw=1.2, ls="--", label=name("dpo"))
        ax.axhspan(
            dpo[f"{quantity}_low"], dpo[f"{quantity}_high"], color=RULES["dpo"][0], alpha=0.12, lw=0
        )
        for i, (rule, part) in enumerate(masked.groupby("rule", sort=False)):
            _line(ax, rule, 100 * part.keep + i - 1.5, part, quantity)
        ax.set(xlabel="tokens kept, %", ylabel=words, yscale="log")
        ax.yaxis.set_major_formatter("{x:g}"), ax.yaxis.set_minor_formatter("")
        ax.set_yticks(
            [
                y
                for y in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
                if ax.get_ylim()[0] < y < ax.get_ylim()[1]
            ]
        )
    axes[0].set_title(f"Which tokens? (n = {n})"), axes[1].legend(fontsize=8)
    return figure


@styled
def noise_grid(table, *, n):
    """KL to pi* minus DPO's, paired by seed, against label noise, a panel per number of pairs.

    `table`: pairs, label_noise, rule, kl_opt (+ _low, _high), differences to DPO.
    """
    sizes = sorted(table["pairs"].unique())
    figure, axes = new_axes(len(sizes), width=3.8)
    for ax, size in zip(np.atleast_1d(axes), sizes):
        for i, (rule, part) in enumerate(table[table["pairs"] == size].groupby("rule", sort=False)):
            _line(ax, rule, 100 * part.label_noise + 0.6 * i, part, "kl_opt")
        ax.axhline(0, color="#222222", lw=0.9)
        ax.set(xlabel="labels flipped, %", title=f"{size:,} pairs")
    first = np.atleast_1d(axes)[0]
    first.set_ylabel(f"KL(θ‖π*) minus DPO's, nats (n = {n})"), first.legend(fontsize=8)
    return figure


@styled
def spectra(mean, singular):
    """Eigenvalues of the mean moment, and residual singular values per data set ({name: array}); two panels."""
    figure, (left, right) = new_axes(2)
    left.plot(np.arange(1, len(mean) + 1), np.cumsum(mean) / np.sum(mean), color="#3b6fb6")
    left.set(
        xlabel="eigenvectors",
        ylabel="share of the energy",
        ylim=(0, 1.02),
        title="Mean moment of the data sets",
    )
    for (label, values), colour in zip(singular.items(), seaborn.color_palette("deep")):
        right.plot(np.arange(1, len(values) + 1), values, color=colour, label=label)
    (
        right.set(
            xlabel="direction",
            ylabel="singular value / √n",
            title="Outside the other data sets' span",
        ),
        right.legend(),
    )
    return figure


@styled
def anchor_residual(energies, rare, picked):
    """The plane of anchor and residual energy, a panel per rule. `rare` bool [N]; `picked`: {rule: rows}."""
    figure, axes = new_axes(len(picked), width=3.3, height=3.2)
    for ax, (rule, rows) in zip(np.atleast_1d(axes), picked.items()):
        ax.scatter(
            *energies.T, s=3, color="#d9d9d9", linewidths=0, rasterized=True, label="not picked"
        )
        for mine, colour, words in (
            (~rare, "#3b6fb6", "shared"),
            (rare, "#c4504b", "own category"),
        ):
            some = rows[mine[rows]]
            ax.scatter(
                *energies[some].T, s=6, color=colour, linewidths=0, rasterized=True, label=words
            )
        ax.set(
            xlabel="anchor energy |a|²",
            title=f"{name(rule)}: {rare[rows].sum()} of {rare.sum()} own",
        )
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("residual energy |b|²"), first.legend(fontsize=7, markerscale=2)
    return figure


@styled
def unsafe_by_category(table, *, n):
    """P(unsafe) in percent, rules down and categories across, as a heat map."""
    figure, ax = new_axes(width=6.2, height=0.32 * len(table) + 1)
    seaborn.heatmap(
        table,
        annot=True,
        fmt=".1f",
        cmap="OrRd",
        cbar=False,
        ax=ax,
        linewidths=0.5,
        annot_kws={"fontsize": 8},
    )
    ax.set(xlabel="", ylabel="", title=f"P(unsafe) on held-out nouns, % (n = {n})")
    ax.set_yticks(
        ax.get_yticks(), [name(t.get_text()) for t in ax.get_yticklabels()], rotation=0, fontsize=8
    )
    return figure


@styled
def budgets(table, *, n, full=None):
    """P(unsafe) against the budget, %, `table`: rule, budget, unsafe, worst category's (+ _low, _high); two panels."""
    figure, axes = new_axes(2)
    for ax, quantity, words in zip(
        axes, ("unsafe", "worst"), ("P(unsafe), %", "P(unsafe) of the worst category, %")
    ):
        for i, (rule, part) in enumerate(table.groupby("rule", sort=False)):
            _line(ax, rule, 100 * part.budget * 1.03**i, part, quantity)
        if full is not None:
            ax.axhline(
                full[quantity], color="#222222", lw=0.9, ls="--", label="all pairs, equal steps"
            )
        ticks = sorted(table.budget.unique())
        ax.set(xlabel="budget, % of the pairs", ylabel=words, xscale="log")
        ax.set_xticks([100 * b for b in ticks], [f"{100 * b:g}" for b in ticks])
        ax.minorticks_off()
    axes[0].set_title(f"Budget (n = {n})"), axes[1].legend(fontsize=8)
    return figure


@styled
def accuracy_by_source(table, *, n):
    """Held-out pairs ordered rightly, a panel per data set. `table`: rule, source, accuracy, low, high, n."""
    sources = list(dict.fromkeys(table.source))
    figure, axes = new_axes(len(sources), width=2.9, height=0.3 * table.rule.nunique() + 1.2)
    for ax, source in zip(np.atleast_1d(axes), sources):
        part = table[table.source == source]
        bar = [part.accuracy - part.low, part.high - part.accuracy]
        colours = [RULES[r][0] for r in part.rule]
        ax.errorbar(
            part.accuracy, range(len(part)), xerr=bar, fmt="none", ecolor=colours, elinewidth=1.4
        )
        ax.scatter(part.accuracy, range(len(part)), c=colours, s=22, zorder=3)
        ax.axvline(0.5, color="#999999", lw=0.8, ls="--")
        ax.set(
            xlabel="share ordered rightly",
            title=f"{source} (n = {part.n.iloc[0]:,})",
            ylim=(len(part) - 0.5, -0.5),
        )
        ax.set_yticks(
            range(len(part)),
            [name(r) for r in part.rule] if ax is np.atleast_1d(axes)[0] else [""] * len(part),
            fontsize=8,
        )
    figure.suptitle(f"{n} seeds; 95 % bootstrap intervals over pairs", fontsize=8, color="#666666")
    return figure
