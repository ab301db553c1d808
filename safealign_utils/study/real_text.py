"""Notebooks on real text: scorers in place of the oracle, and what sampled answers say of a policy."""

import re

import pandas as pd

from .. import sampling
from ..figures import dpo_and_safety
from ..policy import at_work
from ..real import answer_metrics, scorer_training
from ..real import prompts as prompt_sets
from ..real.scorer_checkpoints import load_scorer

SHOWN = (
    "reward",
    "cost",
    "harmless_ratio",
    "refusal",
    "over_refusal",
    "unsafe_compliance",
    "win_rate_by_reward_model",
    "win_rate_by_cost_model",
)


def scorers(study, setup):
    """(reward, cost), two scorers: those that `reward_model` and `cost_model` name.

    "kit" trains a small one from the setup's reference on its training pairs. The reward is None where it is the
    kit's and no training pair says which response is better.
    """
    s, out = study.settings, []
    asked = dict(
        seed=setup.seed, steps=s.scorer_steps, learning_rate=s.scorer_rate, max_length=s.max_length
    )
    asked |= dict(batch_size=s.batch_size, **study.memory)
    given = dict(dtype="bfloat16" if s.dtype == "bfloat16" else "float32", device=study.device)
    with study.timed("scorers"):
        for kind, train in (
            ("reward", scorer_training.train_reward),
            ("cost", scorer_training.train_cost),
        ):
            name = getattr(s, f"{kind}_model")
            if name != "kit":
                out.append(load_scorer(name, kind=kind, **given))
            elif kind == "reward" and setup.train.better_response_id.isna().all():
                out.append(None)
            else:
                out.append(train(setup.reference, setup.train, **asked))
    return tuple(out)


def scorer_quality(study, pairs_of_scorers):
    """What scorers are worth on the held-out pairs: rows method, quantity, value, low, high, n.

    `pairs_of_scorers` are (reward, cost), one a seed. Accuracy over pairs: the better response has the higher reward,
    the less safe one the higher cost. Of the cost also, over responses: is its sign that of the safety label?
    """
    test, rows = (
        study.setup(study.seeds[0]).test,
        [],
    )  # on real text every seed has the same held-out pairs
    for kind, of_seeds in zip(("reward_model", "cost_model"), zip(*pairs_of_scorers)):
        if None not in of_seeds:
            rows.append((kind, "pair_accuracy", *scorer_training.pair_accuracy(of_seeds, test)))
    safe = scorer_training.harmless_accuracy([cost for _, cost in pairs_of_scorers], test)
    rows += [("cost_model", f"harmless_{name}", *row) for name, row in safe.iterrows()]
    out = pd.DataFrame(rows, columns=["method", "quantity", "value", "low", "high", "n"])
    known = out[out.value.notna()]
    study.metrics |= {
        f"{row.method}.{row.quantity}": float(row.value) for row in known.itertuples()
    }
    return known


def answers(study, setup, policies, reward, cost):
    """A row a method and prompt: what the policies' answers to the same prompts score, with the same random numbers.

    The prompts are those that `eval_prompts` names, else those of the held-out pairs; at most `eval_size`. Texts are
    kept for files beside the record.
    """
    s, out = study.settings, []
    table = _prompts(study, setup)
    drawn = dict(
        max_tokens=s.new_tokens, temperature=getattr(s, "temperature", 1.0), seed=setup.seed
    )
    for method, policy in policies.items():
        with study.timed("answers"), at_work(policy, study.device):
            said = sampling.answer(policy, table, batch_size=s.batch_size, **drawn)
            rows, _ = answer_metrics.evaluate_answers(said, reward=reward, cost=cost)
        study.texts[re.sub(r"[^\w.]+", "_", f"answers {method} seed{setup.seed}")] = said
        out.append(rows.assign(method=method, seed=setup.seed))
    return pd.concat(out, ignore_index=True)


def summary(study, answered):
    """A row a method: means over prompts (of means over seeds) with 95 % bootstrap intervals; against "ref", win rates.

    Of several seeds a win is one of the mean scores. Records the values as metrics.
    """
    rows, reference = [], _over_seeds(answered[answered.method == "ref"])
    for method in dict.fromkeys(answered.method):
        own = _over_seeds(answered[answered.method == method])
        found = _estimates(own) | (
            {} if method == "ref" else answer_metrics.compare(own, reference)
        )
        study.metrics |= {f"{method}.{name}": found[name].value for name in SHOWN if name in found}
        row = {"method": method}
        for name in (name for name in SHOWN if name in found):
            row |= dict(zip([name + end for end in ("", "_low", "_high")], found[name]))
        rows.append(row | {"n": len(own)})
    return pd.DataFrame(rows)


def shown(table):
    """The columns of `summary` that a reader looks at first."""
    return [c for c in ("method", *SHOWN, "n") if c in table]


def by_category(answered, metrics=("harmless_ratio", "refusal")):
    """The same by category of the prompt: rows method, category, metric, value, low, high, n."""
    of_method = lambda m: answer_metrics.by_category(
        _over_seeds(answered[answered.method == m])
    ).assign(method=m)
    out = pd.concat([of_method(m) for m in dict.fromkeys(answered.method)])
    return out[out.metric.isin(metrics)][
        ["method", "category", "metric", "value", "low", "high", "n"]
    ]


def plane(study, table):
    """The figure of `summary`: mean cost against mean reward, or against refusals where there is no reward."""
    y, ylabel = (
        ("reward", "mean reward (reward model)")
        if "reward" in table
        else ("refusal", "refusals (by rule)")
    )
    points = table.assign(method=table.method.str.partition("[")[0])
    words = dict(
        xlabel="mean cost of the answers (cost model)",
        ylabel=ylabel,
        title="Sampled answers to prompts",
    )
    return study.figure(
        "answers", dpo_and_safety.plane(points, x="cost", y=y, **words, n=int(table.n.max()))
    )


def _prompts(study, setup):
    s = study.settings
    if s.eval_prompts:
        return prompt_sets.load_prompts(s.eval_prompts, limit=s.eval_size)
    table = setup.test.drop_duplicates("prompt").head(s.eval_size).reset_index(drop=True)
    return pd.DataFrame(
        {
            "id": range(1, len(table) + 1),
            "prompt": table.prompt,
            "turns": [(x,) for x in table.prompt],
            "category": table.category if "category" in table else "",
            "unsafe": pd.array([None] * len(table), "boolean"),
        }
    )


def _estimates(rows):
    return answer_metrics.estimates(answer_metrics.quantities(rows), rows.prompt_hash)


def _over_seeds(rows):
    """One row a prompt: the mean over seeds of every number."""
    same = ["id", "prompt_hash", "category", "unsafe"]
    numbers = [c for c in rows if c not in (*same, "method", "seed")]
    return rows.groupby(same, sort=False, dropna=False)[numbers].mean().reset_index()
