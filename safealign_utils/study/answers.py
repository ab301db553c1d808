"""What policies of the made world say: three held-out prompts, the same draw from every policy."""

import textwrap

import numpy as np

from .. import evaluate
from ..engine.streams import generator
from ..world.language import INTENTS

HAZARDS = ("H1", "H2")  # kinds of clauses that the oracle charges for
PAGE_WIDTH = 96  # characters in a line of what is printed
TIED = 9  # decimals: probabilities that agree so far count as equal


def lines(text, *, indent):
    """A text in lines of a page's width, each indented."""
    blank = " " * indent
    return textwrap.wrap(text, PAGE_WIDTH, initial_indent=blank, subsequent_indent=blank)


def three_prompts(world):
    """The ids of the first held-out prompt of each intent: benign, borderline, risky."""
    return [int(world.select("heldout", intent)[0]) for intent in INTENTS]


def likeliest(logp):
    """The number of the most probable response; `logp` [R] in nats. Of equal ones the first."""
    return int(np.argmax(np.exp(logp).round(TIED)))


def drawn(logp, cost, u):
    """The response at the share u of a policy's mass, in the order of growing cost: its number.

    `logp`, `cost` [R], 0 <= u < 1. Equal costs stand in the order of their numbers. With the same u
    for every policy (common random numbers) an answer of higher cost means a policy that has more
    mass on high costs: the difference is the policies', not the luck of the draw. A share within
    rounding of u could fall on either side on another machine; the u's of `show` lie far from all.
    """
    order = np.lexsort((np.arange(len(cost)), cost))
    share = np.cumsum(np.exp(logp[order]))
    at = np.searchsorted(share, u * share[-1], side="right")
    return int(order[min(at, len(order) - 1)])


def marked(world, prompt, response):
    """The text of a response, its hazardous clauses in brackets (`attributes` has none marked)."""
    y, category = world.responses[response], world.category(world.prompts[prompt].category)
    text = world.text(prompt, response)
    for kind, wording in y.clauses:
        if kind in HAZARDS:
            words = category.clauses[kind][wording]
            text = text.replace(words, f"[{words}]")
    return text


def _lines(world, x, name, logp, u):
    """What one policy says to a prompt: its share of unsafe answers, and two of them."""
    cost = world.cost[x]
    yield f"  {name}: {np.exp(logp)[cost > 0].sum():.1%} of its answers are unsafe"
    for how, y in (("likeliest", likeliest(logp)), ("drawn", drawn(logp, cost, u))):
        status = "[UNSAFE]" if cost[y] > 0 else "safe"
        r, c = (round(value, 2) + 0.0 for value in (world.reward[x, y], cost[y]))  # no minus zero
        numbers = f"r {r:5.2f}  c {c:5.2f}  p {np.exp(logp[y]):.3f}"
        yield f"    {how:<10}{status:<9}{numbers}"
        yield from lines(marked(world, x, y), indent=6)


def show(world, policies, *, seed=0):
    """Print what each policy answers to a benign, a borderline and a risky held-out prompt.

    `policies` is {name: a `Policy`, or a table of log-probs [3, R] on `three_prompts`}. Of each the
    most probable answer and one draw, by one uniform number a prompt that all policies share, with
    reward r, cost c (unsafe: c > 0) and probability p, over the grammar. Returns nothing.
    """
    prompts = three_prompts(world)
    tables = {
        name: p if isinstance(p, np.ndarray) else evaluate.exact(p, prompts).logp
        for name, p in policies.items()
    }
    for row, x in enumerate(prompts):
        u = generator(seed, "shown answers", x).random()
        print(f"{world.prompts[x].intent.upper()}  {world.prompts[x].text}")
        for name, logp in tables.items():
            print("\n".join(_lines(world, x, name, logp[row], u)))
        print()
