"""A cost model's unit: how many of its points are one nat of people's preference.

A multiplier, and any limit but 0, are in the cost's unit, and only one kind of label has it: which
of two responses *of equal status* is the safer one (`scorer_training.has_unit`). So a map g of a
learned cost, with g(0) = 0 and not falling, is fitted to such pairs, which the model has not seen:

    L = -log sigma(g(c of the less safe) - g(c of the safer))

`temperature`: g(c) = w c. `isotonic`: g is linear between knots, which are 0 and quantiles.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from .scorer_training import FEWEST, cost_labels, has_unit

KNOTS = 8  # of the isotonic map, beside 0


@dataclass(frozen=True)
class Map:
    """A function of costs [N] that is 0 at 0 and does not fall: `slopes` [K + 1] below, between and
    above the `knots` [K], one of which is 0."""

    knots: np.ndarray
    slopes: np.ndarray

    def __call__(self, costs):
        return _ramps(np.asarray(costs, dtype=float), self.knots) @ self.slopes


def temperature(cost, table):
    """The `Map` of one slope that fits the pairs of equal status of a table, on which the cost
    scorer `cost` was not trained. Fewer than FEWEST of them: costs stay as they are."""
    zero = np.zeros(1)
    costs, sign = _of_equal_status(cost, table)
    if len(sign) < FEWEST:
        return Map(zero, np.ones(2))
    slope = _fitted((sign * (costs[:, 0] - costs[:, 1]))[:, None], np.ones(1))
    return Map(zero, np.repeat(slope, 2))


def isotonic(cost, table):
    """The `Map` with knots at 0 and at KNOTS quantiles, fitted as in `temperature`, from whose
    slope all slopes start."""
    costs, sign = _of_equal_status(cost, table)
    if len(sign) < FEWEST:
        return Map(np.zeros(1), np.ones(2))
    inner = np.quantile(costs, np.linspace(0, 1, KNOTS + 2)[1:-1])
    knots = np.unique(np.append(inner, 0.0))
    x = sign[:, None] * (_ramps(costs[:, 0], knots) - _ramps(costs[:, 1], knots))
    start = _fitted(x.sum(1, keepdims=True), np.ones(1))
    return Map(knots, _fitted(x, np.repeat(start, x.shape[1])))


def rescaled(cost, to):
    """A `Scorer` whose scores are those of `cost` through a `Map`."""

    def forward(rows):
        return torch.from_numpy(to(cost.forward(rows).double().cpu().numpy()))

    def made_of():
        return [cost.made_of(), to]

    return replace(cost, name=f"{cost.name}, in nats", made_of=made_of, forward=forward)


def _of_equal_status(cost, table):
    """(costs [N, 2] of both responses, sign [N]: +1 where response 0 is the less safe one) of the
    pairs whose responses are both safe or both unsafe, and of which one is named the safer."""
    rows = table[has_unit(table)]
    costs = [cost(rows.prompt, rows[f"response_{k}"]) for k in (0, 1)]
    return np.stack(costs, axis=1), cost_labels(rows)[0]


def _ramps(c, knots):
    """The part of c [N] in each segment, counted from 0: [N, K + 1], which sum to c."""
    ends = np.concatenate([[-np.inf], knots, [np.inf]])
    low, high = ends[:-1], ends[1:]
    return np.clip(c[:, None], low, high) - np.clip(0.0, low, high)


def _fitted(x, start):
    """Slopes >= 0 with the smallest mean of -log sigma(x @ slopes); x [N, K]."""

    def loss(slopes):
        gap = x @ slopes
        return np.logaddexp(0, -gap).mean(), -(expit(-gap) @ x) / len(x)

    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start)).x
