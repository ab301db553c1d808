"""The exact optimum of one prompt, to be moved by hand: sliders for beta, lambda and Delta.

What is shown needs no server and no network: a table of the likeliest responses, the means at both
ends of each slider, and a script that computes the optimum anew in the reader's browser. Where
scripts are not run (GitHub, the report, a notebook that is not trusted) table and means stay, at
the values that were given.
"""

import hashlib
import html
import json
from pathlib import Path
from string import Template

import numpy as np
from IPython.display import HTML

from ..world import optimum

SHOWN = 12  # responses in the table, the likeliest ones
DECIMALS = 5  # of what is computed from
SLIDERS = {  # name: (symbol, lowest, highest, step)
    "beta": ("β", 0.1, 2.0, 0.05),
    "lam": ("λ", 0.0, 3.0, 0.05),
    "delta": ("Δ", 0.0, 8.0, 0.25),
}


def by_hand(logp_ref, reward, cost, texts, *, prompt, sliders=tuple(SLIDERS), **values):
    """The optimum pi* of r - lambda c - Delta 1{c > 0} for one prompt, with sliders, as HTML.

    `logp_ref` (nats), `reward`, `cost` [R]; `texts` the R responses. `values` beta (above 0), lam
    and delta (0 or above) are where it starts; only `sliders`, of SLIDERS, can be moved. Raises
    ValueError for other values.
    """
    at = {"beta": 0.5, "lam": 0.0, "delta": 0.0} | values
    if not at["beta"] > 0 or at["lam"] < 0 or at["delta"] < 0:
        raise ValueError(f"{at}: beta is above 0, lam and delta are 0 or above")
    data = {"logp": logp_ref, "r": reward, "c": cost}
    data = {name: np.round(v, DECIMALS) + 0.0 for name, v in data.items()}
    named = {n: symbol for n, (symbol, *_) in SLIDERS.items() if n in sliders or at[n]}
    ends = [at | {n: v} for n in sliders for v in SLIDERS[n][1:3] if v != at[n]]
    lines = [means(*data.values(), named, **values) for values in (at, *ends)]
    rows = table(*data.values(), texts, **at)
    bodies = ["<td>" + "</td><td>".join(map(html.escape, row)) + "</td>" for row in rows]
    given = {name: v.tolist() for name, v in data.items()}
    given |= {"texts": list(texts), "at": at, "shown": SHOWN, "named": named}
    given["sliders"] = {name: SLIDERS[name] for name in sliders}
    text = json.dumps(given, ensure_ascii=False).replace("<", "\\u003c")
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    filled = page.substitute(
        id=f"optimum-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        prompt=html.escape(prompt),
        words=html.escape(lines[0]),
        ends="<br>".join(map(html.escape, lines[1:])),
        rows="\n".join(f"<tr>{body}</tr>" for body in bodies),
        data=text,
    )
    return HTML(filled)


def _optimum(logp_ref, reward, cost, beta, lam, delta):
    """Log-probs [R] of the optimum of one prompt."""
    value = reward - lam * cost - delta * (cost > 0)
    return optimum.optimal(logp_ref[None], value[None], beta=beta)[0]


def means(logp_ref, reward, cost, named, **at):
    """E[r], E[c], P(unsafe) and KL of the optimum in a line that begins with the `named` values."""
    logp = _optimum(logp_ref, reward, cost, **at)
    p = np.exp(logp)
    found = {"E[r]": p @ reward, "E[c]": p @ cost, "P(unsafe)": p @ (cost > 0)}
    found["KL to the reference"] = p @ (logp - logp_ref)
    words = ", ".join(f"{name} {round(float(v), 3) + 0.0:.3f}" for name, v in found.items())
    return f"{', '.join(f'{s} = {at[n]:g}' for n, s in named.items())}: {words} nats"


def table(logp_ref, reward, cost, texts, **at):
    """Rows p, r, c, response of the likeliest responses of the optimum, in words."""
    p = np.exp(_optimum(logp_ref, reward, cost, **at))
    likeliest = np.argsort(-p.round(9), kind="stable")[:SHOWN]
    return [
        [
            f"{p[y]:.3f}",
            f"{reward[y] + 0.0:.2f}",
            f"{cost[y] + 0.0:.2f}",
            texts[y] + ("  [UNSAFE]" if cost[y] > 0 else ""),
        ]
        for y in likeliest
    ]
