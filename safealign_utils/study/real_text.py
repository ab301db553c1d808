"""Real pairs: what notebook 08 holds, scorers in place of the oracle, and what sampled answers say.

Without `data` a study has no setups, what is asked of them is None, and a table or figure of None
is not recorded. So every cell of the notebook runs.
"""

import functools
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from .. import evaluate, pairs, references, sampling
from ..figures import dpo_and_safety
from ..intervals import summarise
from ..methods import safedpo
from ..policy import at_work
from ..real import (
    answer_metrics,
    judge_files,
    models,
    probe,
    read_pairs,
    scorer_training,
    soft_labels,
)
from ..real import prompts as prompt_sets
from ..real.scorer_checkpoints import load_scorer
from ..real.scorer_training import encode_rows
from ..templates import format_prompt
from ..tokens import show_row
from ..train import fine_tune
from . import bug_zoo, inputs
from .settings import PARTS
from .study import Notebook, Setup, show_template

SHOWN = (
    "reward cost harmless_ratio refusal over_refusal unsafe_compliance win_rate_by_reward_model "
    "win_rate_by_cost_model".split()
)
KINDS = ("reward", "cost")
CROSS_FITTED = "_cross_fitted"  # how a method on such labels is called
NOTHING = "data='' names no pairs: give data=PAIRS.jsonl, a hub id, or name=path,name=path"


class OwnPairs(Notebook):
    """The pairs and the model that the settings name; `parts` are those that the labels allow."""

    tolerances = {"float64": 1e-6, "float32": 1e-4}

    def __init__(self, name, namespace):
        super().__init__(name, namespace)
        self.parts, self.answers, self._report, self._label = (), {}, {}, ""
        self._states, self._fitted = {}, {}
        s = self.settings
        self.options = dict(accumulate=s.accumulate, checkpointing=s.checkpointing, lora=s.lora)
        if not s.data:
            self.seeds = []
            print(NOTHING)
            return
        first = self._introduce()
        print(f"{'label':<11}{self._label} (label={s.label})")
        if s.cost_model == "kit" and "cost_model" not in inputs.unlabelled(first.train, vars(s)):
            loss = scorer_training.loss_named(s.cost_loss, first.train)
            print(f"{'cost loss':<11}{loss} (cost_loss={s.cost_loss})")
        for name, count in self._report.items():
            self.metrics[f"data.{name}"] = count
            print(f"{'':<11}{name.replace('_', ' ')}: {count:,}")
        show_template(first.reference)
        print(f"{'reference':<11}{first.origin}, hash {first.reference.hash}")
        asked = [p for p in s.parts or PARTS if p in PARTS]
        self.parts = ("dpo", *(p for p in asked if not lacking(first.train, p, s)))

    def having(self, part):
        """The setups where a part of the notebook runs, else none."""
        return self.setups if part in self.parts else []

    def _data(self, first):
        return f"{len(first.train):,} pairs, {len(first.test):,} held out"

    def _make(self, seed):
        s = self.settings
        table, test, report = self._read()
        reference = self._pretrained or self._from_scratch(table, seed)
        if not self._report:
            tokens = pairs.tokenize(table, reference, max_length=s.max_length)
            cut = {"responses_cut": tokens.truncated, "prompts_cut": tokens.truncated_prompts}
            self._report = report | cut
        origin = s.model + f", fine-tuned for {s.sft_steps} steps" * (s.sft_steps > 0)
        return Setup(seed, reference, origin, table, test)

    @property
    def _held(self):
        s = self.settings
        return dict(heldout=s.heldout, categories=s.heldout_categories)

    def _read(self):
        """(training pairs, held-out pairs, what was left out)."""
        s = self.settings
        loaded = read_pairs.load_pairs(s.data, revision=s.revision)
        rows, self._label = pairs.label(loaded, s.label), pairs.label_used(loaded, s.label)
        table, test, split = pairs.split_pairs(rows, **self._held)
        report = {
            "rows": len(loaded),
            "rows_left_out": sum(loaded.attrs["left_out"].values()),
            "rows_without_label": len(loaded) - len(rows),
            **split,
            "training_pairs_not_used": max(0, len(table) - s.pairs),
        }
        return pairs.some_of_every_source(table, s.pairs), test, report

    @functools.cached_property
    def _pretrained(self):
        """The reference of every seed, where a model is named."""
        s = self.settings
        if s.model == "scratch":
            return None
        opened = models.load_policy(s.model, revision=s.revision, template=s.template)
        policy = self._at_work(opened)
        return self._at_work(self._tuned(policy)) if s.sft_steps else policy

    def _tuned(self, policy):
        """After supervised fine-tuning on the best safe response to each training prompt, of all
        pairs, with a label or without."""
        s = self.settings
        loaded = read_pairs.load_pairs(s.data, revision=s.revision)
        best = pairs.best_safe(pairs.split_pairs(loaded, **self._held)[0])
        x, y = zip(*encode_rows(policy, s.max_length, *zip(*best.items())))
        asked = dict(steps=s.sft_steps, learning_rate=s.sft_rate, batch_size=s.batch_size)
        return fine_tune(policy, x, y, seed=s.seed, **asked, **self.options).policy.merged()

    def _at_work(self, reference):
        s = self.settings
        reference = replace(reference.to(s.dtype, self.device), template=s.template)
        return reference.base if s.lora else reference

    def _from_scratch(self, table, seed):
        texts = [*table.prompt.map(format_prompt), *table.response_0, *table.response_1]
        chosen = table.response_0.where(table.chosen == 0, table.response_1)
        of = texts, list(table.prompt), list(chosen)
        made = references.scratch_policy(*of, seed=seed, max_length=self.max_length)
        return self._at_work(made)

    def cross_fitted(self, setup):
        """A setup's training pairs with probabilities for labels, each fitted without the labels of
        its prompt (`pairs.cross_fitted`); as they are where `cross_fitted` is not asked for."""
        if not self.settings.cross_fitted:
            return setup.train
        if setup.seed not in self._fitted:
            members = [self._member(setup), evaluate.bag_of_words]
            with self.timed("cross-fitting"):
                self._fitted[setup.seed] = pairs.cross_fitted(
                    setup.train, members, folds=inputs.FOLDS, by="prompt"
                )
        return self._fitted[setup.seed]

    def _member(self, setup):
        """What labels pairs beside word counts: the reward that `reward_model` takes from the
        reference, heads on its hidden states or DPO's implicit reward."""
        s = self.settings
        if s.reward_model == "probe":
            return soft_labels.Heads(self.states(setup))
        asked = dict(beta=s.beta, steps=s.steps, batch_size=s.batch_size, seed=setup.seed)
        asked |= dict(learning_rate=s.learning_rate) | self.options
        return soft_labels.ImplicitReward(setup.reference, asked, self.max_length)

    def states(self, setup):
        """The hidden states that probes read, `probe.States` of a setup's reference."""
        if self._states.get("of") is not setup.reference:
            made = probe.States(setup.reference, max_length=self.max_length)
            self._states = {"of": setup.reference, "states": made}
        return self._states["states"]

    def train_each(self, tables_of, part="dpo"):
        """{(method, seed): run} of the tables {method: table} that `tables_of(setup)` gives."""
        return {
            (method, setup.seed): self.train(setup, table)
            for setup in self.having(part)
            for method, table in tables_of(setup).items()
        }

    def summary(self, name, rows, by, quantities, digits=3):
        """Record the means of rows over seeds with their intervals; nothing for no rows."""
        table = summarise(rows, by, quantities) if rows else None
        return self.table(name, table, [*by, *quantities], digits)

    def draw(self, name, draw, table, **options):
        """Record the figure draw(table, **options); nothing where the table is None."""
        return None if table is None else self.figure(name, draw(table, **options))

    def _write(self, folder):
        for (method, seed), said in self.answers.items():
            name = re.sub(r"[^\w.]+", "_", f"{method} seed{seed}")
            answer_metrics.write_answers(folder, said, name=f"answers_{name}")
            for form in filter(None, self.settings.judge_files.split(",")):
                target = Path(folder) / "judges" / form
                target.mkdir(parents=True, exist_ok=True)
                judge_files.WRITERS[form](target, said, name)
        super()._write(folder)

    def _provenance(self):
        commits = inputs.commits(vars(self.settings)) if self.seeds else {}
        return super()._provenance(commits=commits)


def together(tables):
    """Tables below each other; None for none of them."""
    return pd.concat(tables, ignore_index=True) if tables else None


def rows_of(rows):
    """Rows, or columns, as a table; None for none of them."""
    return pd.DataFrame(rows) if rows else None


def named(**tables):
    """The tables by name; None where one of them is None."""
    return None if any(table is None for table in tables.values()) else tables


def by_seed(rows, quantity):
    """A quantity of rows of a rule and a seed: {rule: [seeds]}."""
    of_rules = pd.DataFrame(rows, columns=["rule", quantity]).groupby("rule", sort=False)
    return {rule: part[quantity].to_numpy() for rule, part in of_rules}


# ---------------------------------------------------------------- what the pairs can teach
def known(table, part):
    """How many pairs have the labels of a part: bool [N]."""
    if part == "safedpo":
        return table[list(pairs.SAFE)].notna().all(axis=1)
    if part == "cdpo":
        safe = table[list(pairs.SAFE)].notna().any(axis=1)
        return safe & table.better_response_id.notna()
    return table.chosen.notna()


def lacking(table, part, settings):
    """What pairs lack for a part of the notebook, in words; "" where nothing."""
    if part == "safedpo" and not known(table, part).any():
        return "no pair has both safety labels"
    missing = inputs.unlabelled(table, vars(settings)).values() if part == "cdpo" else ()
    return next((f"no pair {why}" for why in missing), "")


def parts(study):
    """A row a part: how many training pairs have its labels, and whether it runs."""
    if not study.parts:
        return None
    table, rows = study.setups[0].train, []
    for part in ("dpo", *PARTS):
        why = "yes" if part in study.parts else lacking(table, part, study.settings)
        rows.append((part, int(known(table, part).sum()), why or "not asked for"))
    return pd.DataFrame(rows, columns=["part", "pairs with its labels", "runs"])


def ids_of_one_row(study):
    """The first pair's chosen response as training reads it (`tokens.show_row`)."""
    for setup in study.setups[:1]:
        return show_row(setup.train.iloc[0], setup.reference, max_length=study.max_length)


def bugs(study, *, rows=8):
    """The bug zoo on the first pairs, with a moved copy of the reference."""
    for setup in study.setups[:1]:
        tokens, reference = study.tokens(setup), setup.reference
        some = list(range(min(rows, len(tokens))))
        of = bug_zoo.moved(reference), reference, tokens, some
        return bug_zoo.measure(*of, beta=study.settings.beta)


def transformation(study):
    """What SafeDPO's T does to the first seed's pairs: rule, pairs."""
    for setup in study.having("safedpo")[:1]:
        report = safedpo.transform(pairs.with_safety(setup.train))[1]
        study.metrics |= {f"data.{rule}": count for rule, count in report.items()}
        return pd.DataFrame(report.items(), columns=["rule", "pairs"])


def first_log(study, runs):
    """The log of the first seed's DPO, whose first loss must be ln 2."""
    for seed in study.seeds[:1]:
        losses = [run.log.loss[0] for (method, _), run in runs.items() if method == "dpo"]
        off = max(abs(loss - math.log(2)) for loss in losses)
        study.check("DPO starts at ln 2", off < study.tolerance)
        return runs["dpo", seed].log


# ---------------------------------------------------------------- which pairs
def pool(study):
    """The first seed's pairs by data set and by how many responses are unsafe."""
    for setup in study.having("dog")[:1]:
        safe = setup.train[list(pairs.SAFE)]
        unsafe = (~safe.fillna(True).astype(bool)).sum(axis=1).astype(str) + " unsafe"
        kind = unsafe.where(safe.notna().all(axis=1), "no safety label")
        return pd.crosstab(setup.train.source, kind).rename_axis(columns=None).reset_index()


def redundancy(u, *, limits=(0.99, 0.9, 0.8), some=500):
    """{limit: share of pairs with another one at a larger cosine}, its sign left out; u [N, D]."""
    rows = torch.arange(0, len(u), max(1, len(u) // some), device=u.device)
    cosine = (u[rows] @ u.T).abs()
    cosine[torch.arange(len(rows)), rows] = 0
    nearest = cosine.max(1).values.double().cpu().numpy()
    return {limit: float((nearest > limit).mean()) for limit in limits}


def accuracy_by_source(study, trained):
    """Rules {(rule, seed): run} on the held-out pairs of each data set, and against random pairs.

    Rows rule, source, accuracy, low, high, minus_random, its ends, n.
    """
    if not trained:
        return None
    test, rules = study.setups[0].test, dict.fromkeys(rule for rule, _ in trained)
    every, rows = {rule: margins(study, trained, rule) for rule in rules}, []
    for rule in rules:
        for source in (*sorted(study.setups[0].train.source.unique()), "all"):
            mine = (test.source == source).to_numpy() | (source == "all")
            over = dict(prompts=test.prompt.to_numpy()[mine], same_pairs=True)
            own, random = ([m[mine] for m in every[name]] for name in (rule, "random"))
            value, low, high, n = evaluate.accuracy(own, **over)
            gap = evaluate.accuracy(own, against=random, **over)[:3]
            row = {"rule": rule, "source": source, "accuracy": value, "low": low, "high": high}
            row |= dict(zip(("minus_random", "minus_random_low", "minus_random_high"), gap))
            rows.append(row | {"n": n})
            name = "random_pairs" if rule == "random" else rule
            study.metrics[f"{name}[source={source}].accuracy"] = value
    return pd.DataFrame(rows)


def ahead(study, trained):
    """DOG-D's accuracy minus that of random pairs: (value, low, high, n)."""
    own, random = (margins(study, trained, rule) for rule in ("dog_d", "random"))
    over = dict(prompts=study.setups[0].test.prompt, same_pairs=True)
    return evaluate.accuracy(own, against=random, **over)


# ---------------------------------------------------------------- held-out pairs
def margins(study, runs, method, by=None):
    """Held-out margins of a method, one array a seed; `by` labels the pairs anew."""
    table = pairs.label(study.setups[0].test, by) if by else None
    return [study.margins(s, runs[method, s.seed].policy, table) for s in study.setups]


def accuracy(study, runs):
    """DPO against word counts on the held-out pairs: method, accuracy, low, high, n.

    Judges whether DPO is ahead.
    """
    if not study.seeds:
        return None
    test = study.setups[0].test  # every seed has the same held-out pairs
    over = dict(prompts=test.prompt, same_pairs=True)
    words = [evaluate.bag_of_words(s.train, test) for s in study.setups]
    found = {"dpo": margins(study, runs, "dpo"), "bag_of_words": words}
    rows = [(method, *evaluate.accuracy(of, **over)) for method, of in found.items()]
    study.metrics |= {f"{row[0]}.accuracy": row[1] for row in rows}
    ahead = evaluate.accuracy(found["dpo"], against=words, **over)
    study.claim("dpo.beats_bag_of_words", measured=ahead)
    return pd.DataFrame(rows, columns=["method", "accuracy", "low", "high", "n"])


def accuracy_by_label(study, runs):
    """Every method on held-out pairs by `better` and by `safer`, where both splits have it."""
    rows, methods = [], dict.fromkeys(method for method, _ in runs)
    for method, (by, prompts) in itertools.product(methods, _held_labels(study)):
        found = margins(study, runs, method, by)
        found = evaluate.accuracy(found, prompts=prompts, same_pairs=True)
        study.metrics[f"{method}.accuracy_{by}"] = found[0]
        rows.append((method, by, *found))
    columns = ["method", "label", "accuracy", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns) if rows else None


def cross_fitted_gain(study, runs):
    """Held-out accuracy of a method on cross-fitted labels minus that on hard ones, paired, by
    `better` and by `safer`: None where `cross_fitted` is not asked for."""
    rows, methods = [], dict.fromkeys(method for method, _ in runs)
    soft = [method for method in methods if method.endswith(CROSS_FITTED)]
    for method, (by, prompts) in itertools.product(soft, _held_labels(study)):
        hard = margins(study, runs, method.removesuffix(CROSS_FITTED), by)
        over = dict(prompts=prompts, same_pairs=True)
        found = evaluate.accuracy(margins(study, runs, method, by), against=hard, **over)
        study.metrics[f"{method}.minus_hard_{by}"] = found[0]
        rows.append((method, by, *found))
    columns = ["method", "label", "minus_hard", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns) if rows else None


def _held_labels(study):
    """[(label, the prompt of each held-out pair that has it)] of those that both splits have."""
    if not study.setups:
        return []
    train, test = study.setups[0].train, study.setups[0].test
    has = [by for by, c in pairs.LABELS.items() if all(t[c].notna().any() for t in (train, test))]
    return [(by, pairs.label(test, by).prompt) for by in has]


# ---------------------------------------------------------------- scorers
def scorers(study, setup):
    """(reward, cost), two scorers: those that `reward_model` and `cost_model` name.

    "kit" trains a small one from the setup's reference on its training pairs, "probe" fits heads on
    the reference's hidden states to them: None where no pair has its labels.
    """
    with study.timed("scorers"):
        return tuple(_scorer(study, setup, kind, setup.train) for kind in KINDS)


def judges(study, setup, own):
    """(reward, cost) that judge answers: the two scorers `own`, but for "probe" heads that are
    fitted to the held-out pairs, so that no policy is judged by what labelled its pairs."""
    with study.timed("scorers"):
        return tuple(
            _scorer(study, setup, kind, setup.test) if _is_probe(study, kind) else scorer
            for kind, scorer in zip(KINDS, own)
        )


def _is_probe(study, kind):
    return getattr(study.settings, f"{kind}_model") == "probe"


def judge_quality(study, of_seeds):
    """What judges {seed: (reward, cost)} that are probes are worth on the training pairs, which
    they have not seen: the rows of `scorer_quality`. None without them."""
    rows = []
    for kind, own in zip(KINDS, zip(*of_seeds.values())):
        if _is_probe(study, kind) and None not in own:
            found = _worth(kind, own, study.setups[0].train)
            rows += [(f"{kind}_judge", *row) for row in found]
    return _recorded(study, rows) if rows else None


def _scorer(study, setup, kind, table):
    s = study.settings
    name = getattr(s, f"{kind}_model")
    if f"{kind}_model" in inputs.unlabelled(table, vars(s)):
        return None
    if name == "probe":
        return probe.train_probe(kind, study.states(setup), table)
    if name != "kit":
        dtype = "bfloat16" if s.dtype == "bfloat16" else "float32"
        return load_scorer(name, kind=kind, dtype=dtype, device=study.device)
    asked = dict(steps=s.scorer_steps, learning_rate=s.scorer_rate, batch_size=s.batch_size)
    asked |= dict(seed=setup.seed, max_length=s.max_length, **study.options)
    if kind == "reward":
        return scorer_training.train_reward(setup.reference, table, **asked)
    return scorer_training.train_cost(setup.reference, table, loss=s.cost_loss, **asked)


def scorer_quality(study, of_seeds):
    """What scorers {seed: (reward, cost)} are worth on pairs that they have not seen: values with
    intervals and n.

    Accuracy over pairs: the better response has the higher reward, the less safe one the higher
    cost. Of the cost also, over responses: is its sign that of the safety label? Probes are
    measured on all pairs, each fold of prompts (of whatever category) by heads of the others, and
    beside word counts; all else on the held-out pairs.
    """
    if not of_seeds:
        return None
    rows = []
    for kind, own in zip(KINDS, zip(*of_seeds.values())):
        if None not in own:
            rows += _quality(study, kind, own)
    return _recorded(study, rows)


def _recorded(study, rows):
    out = pd.DataFrame(rows, columns=["method", "quantity", "value", "low", "high", "n"])
    out = out[out.value.notna()]
    for row in out.itertuples():
        study.metrics[f"{row.method}.{row.quantity}"] = float(row.value)
    return out


def _quality(study, kind, own):
    """Rows of `scorer_quality` for the scorers of one kind, one a seed."""
    setup = study.setups[0]  # every seed has the same pairs
    rows = _worth(kind, own, setup.test)
    if _is_probe(study, kind):
        table = together([setup.train, setup.test])
        found, table = probe.cross_validated(kind, study.states(setup), table)
        rows = _worth(kind, [found], table) + _against_words(found, table)
    return [(f"{kind}_model", *row) for row in rows]


def _worth(kind, scorers, table):
    out = [("pair_accuracy", *scorer_training.pair_accuracy(scorers, table))]
    if kind == "cost":
        safe = scorer_training.harmless_accuracy(scorers, table)
        out += [(f"harmless_{word}", *row) for word, row in safe.iterrows()]
    return out


def _against_words(scorer, table):
    """Rows: what word counts reach in the same folds, and what a scorer is ahead; none where no
    pair is ordered."""
    rows, words = probe.words_out_of_fold(scorer.kind, table)
    if rows.empty:
        return []
    over = dict(prompts=rows.prompt, same_pairs=True)
    own = [scorer_training.pair_margins(scorer, rows)]
    ahead = evaluate.accuracy(own, against=[words], **over)
    return [("words", *evaluate.accuracy([words], **over)), ("minus_words", *ahead)]


def against_scorers(study, runs, of_seeds):
    """DPO minus each scorer on the held-out pairs as they are labelled, whichever label a scorer
    is about: method, accuracy, dpo_minus, low, high, n."""
    if not of_seeds:
        return None
    test, rows = study.setups[0].test, []
    over, own = dict(prompts=test.prompt, same_pairs=True), margins(study, runs, "dpo")
    for kind, scorers_of in zip(KINDS, zip(*of_seeds.values())):
        if None not in scorers_of:
            found = [scorer_training.pair_margins(scorer, test) for scorer in scorers_of]
            name, share = f"{kind}_model", evaluate.accuracy(found, **over)[0]
            ahead = evaluate.accuracy(own, against=found, **over)
            study.metrics[f"{name}.accuracy"] = share
            study.metrics[f"dpo.minus_{name}"] = ahead[0]
            rows.append((name, share, *ahead))
    columns = ["method", "accuracy", "dpo_minus", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns) if rows else None


# ---------------------------------------------------------------- answers
def answers(study, setup, policies, reward, cost):
    """A row a method and prompt: what the policies' answers to the same prompts score.

    All draw with the same random numbers. The prompts are those that `eval_prompts` names, else
    those of the held-out pairs; at most `eval_size`. The texts go to files beside the record.
    """
    s, out = study.settings, []
    table = _prompts(study, setup)
    drawn = dict(max_tokens=s.new_tokens, temperature=s.temperature, seed=setup.seed)
    for method, policy in policies.items():
        with study.timed("answers"), at_work(policy, study.device):
            said = sampling.answer(policy, table, batch_size=s.batch_size, **drawn)
            rows, _ = answer_metrics.evaluate_answers(said, reward=reward, cost=cost)
        study.answers[method, setup.seed] = said
        out.append(rows.assign(method=method, seed=setup.seed))
    return pd.concat(out, ignore_index=True)


def summary(study, answered):
    """A row a method: means over prompts (of means over seeds) with 95 % bootstrap intervals.

    Against "ref" also win rates; of several seeds a win is one of the mean scores. Records the
    values as metrics.
    """
    if answered is None:
        return None
    rows, reference = [], _over_seeds(answered[answered.method == "ref"])
    for method in dict.fromkeys(answered.method):
        own = _over_seeds(answered[answered.method == method])
        quantities = answer_metrics.quantities(own)
        found = answer_metrics.estimates(quantities, own.prompt_hash)
        if method != "ref":
            found |= answer_metrics.compare(own, reference)
        row = {"method": method}
        for name in (name for name in SHOWN if name in found):
            study.metrics[f"{method}.{name}"] = found[name].value
            row |= dict(zip([name + end for end in ("", "_low", "_high")], found[name]))
        rows.append(row | {"n": len(own)})
    return pd.DataFrame(rows)


def shown(table):
    """The columns of `summary` that a reader looks at first."""
    return None if table is None else [c for c in ("method", *SHOWN, "n") if c in table]


def by_category(answered):
    """The same by category of the prompt: rows method, category, metric, value, low, high, n."""
    if answered is None:
        return None
    tables = []
    for method in dict.fromkeys(answered.method):
        own = _over_seeds(answered[answered.method == method])
        tables.append(answer_metrics.by_category(own).assign(method=method))
    out = pd.concat(tables)
    columns = ["method", "category", "metric", "value", "low", "high", "n"]
    return out[out.metric.isin(["harmless_ratio", "refusal"])][columns]


def plane(study, table):
    """The figure of `summary`: mean cost against mean reward, or against refusals without one."""
    if table is None or "cost" not in table:
        return None
    y, ylabel = "refusal", "refusals (by rule)"
    if "reward" in table:
        y, ylabel = "reward", "mean reward (reward model)"
    points = table.assign(method=table.method.str.partition("[")[0])
    words = dict(xlabel="mean cost of the answers (cost model)", ylabel=ylabel)
    words |= dict(title="Sampled answers to prompts", n=int(table.n.max()))
    return study.figure("answers", dpo_and_safety.plane(points, x="cost", y=y, **words))


def _prompts(study, setup):
    s = study.settings
    if s.eval_prompts:
        found = prompt_sets.load_prompts(s.eval_prompts)
        asked, held = len(found), s.heldout_categories
        found = prompt_sets.unseen(found, setup.train, held)
        study.metrics["data.prompts_not_asked"] = asked - len(found)
        return prompt_sets.some_of_every_category(found, s.eval_size)
    table = setup.test.drop_duplicates("prompt").head(s.eval_size).reset_index(drop=True)
    out = dict(id=range(1, len(table) + 1), prompt=table.prompt, category=table.category)
    out |= dict(turns=[(x,) for x in table.prompt], unsafe=pd.array([None] * len(table), "boolean"))
    return pd.DataFrame(out)


def _over_seeds(rows):
    """One row a prompt: the mean over seeds of every number."""
    same = ["id", "prompt_hash", "category", "unsafe"]
    numbers = [c for c in rows if c not in (*same, "method", "seed")]
    return rows.groupby(same, sort=False, dropna=False)[numbers].mean().reset_index()
