"""The exactly solvable language world: readable English whose responses can all be enumerated.

Data card
---------
*What it is.* Templated household advice. A prompt is category x noun x intent (benign, borderline,
risky) x phrasing; a response is an opening (none, comply, two styles of refusal), up to three
clauses (safe steps or hazardous shortcuts of the category, each in two wordings, fillers, a
caution), a connector and a closing. `World("default")` has 72 prompts with 604 responses each,
`World("large")` 144 with 1,266. `World("attributes")` is a harder world with words of its own
(`attributes.py`): 204 prompts with 682 responses each, all else as here.

*What it is not.* No text is real, and none is harmful: a "hazardous shortcut" is a phrase such as
"ignore the safety switch". It stands for unsafe content, it does not contain any.

*Oracle.* `reward` r is helpfulness, `cost` c is harm, unsafe means c > 0. The tension is real: on
risky prompts hazards raise r, refusing is safe and unhelpful, refusing a benign prompt costs most.
A caution can make a small hazard safe, so safety is no word list. Connectors and wordings change
nothing: they are nuisance. Grammar and oracle were written once, before any method was run on them.

*Behaviour.* Responses are drawn from an analytic distribution (`behaviour`), never from a trained
network, with one random generator per pair: the data are the same on every machine.

*Splits.* The fourth noun of each trained category is held out (`heldout`), and so is one whole
category (`unseen_category`). Supervised fine-tuning sees them all; only preferences are held out.
In the default world a held-out noun changes nothing but one word of the prompt; where what is
dangerous depends on the noun, see `attributes.py`.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ..engine.streams import generator
from . import attributes, language
from .language import SPLITS

SIZES = ("default", "large", "attributes")


@dataclass(frozen=True)
class Prompt:
    id: int
    category: str
    noun: str
    intent: str
    text: str
    split: str


class World:
    """Prompts, responses, oracle and behaviour; P prompts, R responses each.

    `size` is default, large or attributes (words of its own). Attributes `prompts` (P), `responses`
    (R), `reward`, `cost` and `behaviour` (float64 [P, R]), `refuses` (bool [R]), `categories`.
    Raises ValueError for another size.
    """

    def __init__(self, size="default"):
        if size not in SIZES:
            raise ValueError(f"size={size!r}: the world's size is one of {', '.join(SIZES)}")
        words = attributes if size == "attributes" else language
        asked = {} if size == "attributes" else {"large": size == "large"}
        self.size, self.categories = size, words.CATEGORIES
        self.responses = tuple(words.responses(**asked))
        found = enumerate(words.prompts(**asked))
        self.prompts = tuple(Prompt(id, *fields) for id, fields in found)
        self.refuses = np.array([y.refuses for y in self.responses])
        values = [[words.oracle(y, x) for y in self.responses] for x in self.prompts]
        self.reward, self.cost = np.moveaxis(np.array(values), 2, 0)
        shares = [[words.behaviour(y, x, **asked) for y in self.responses] for x in self.prompts]
        self.behaviour = np.array(shares)

    def category(self, name):
        return next(c for c in self.categories if c.name == name)

    def select(self, split="heldout", intent=None):
        """Prompt ids of a split (train, heldout, unseen_category, all) and, if given, an intent."""
        if split not in (*SPLITS, "all"):
            raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}, all")
        some = [x for x in self.prompts if split in (x.split, "all")]
        return np.array([x.id for x in some if intent in (x.intent, None)])

    def text(self, prompt_id, response):
        """The words of response number `response` to a prompt."""
        return self.responses[response].text(self.category(self.prompts[prompt_id].category))

    def prompt_id(self, text):
        """The id of a prompt given as text. Raises ValueError for one that the world lacks."""
        if text not in self._ids:
            raise ValueError(f"prompt={text!r}: the world has no such prompt")
        return self._ids[text]

    @cached_property
    def _ids(self):
        return {x.text: x.id for x in self.prompts}

    def response_number(self, prompt_id, text):
        """The number of a response given as text. Raises ValueError for one that it cannot be."""
        numbers = self._numbers[self.prompts[prompt_id].category]
        if text not in numbers:
            raise ValueError(f"response={text!r}: outside the world's grammar, without r and c")
        return numbers[text]

    @cached_property
    def _numbers(self):
        numbered = list(enumerate(self.responses))
        return {c.name: {y.text(c): i for i, y in numbered} for c in self.categories}

    def scorer(self, name):
        """The oracle as a scorer: a function (prompts, responses) -> float [N], "reward" or "cost".

        It raises ValueError for a text that the world lacks.
        """
        values = {"reward": self.reward, "cost": self.cost}[name]

        def score(prompts, responses):
            x = [self.prompt_id(text) for text in prompts]
            return values[x, [self.response_number(i, text) for i, text in zip(x, responses)]]

        return score

    @cached_property
    def words(self):
        """Every word of the world, sorted: the vocabulary without special tokens."""
        texts = [x.text for x in self.prompts]
        texts += [y.text(c) for c in self.categories for y in self.responses]
        return tuple(sorted({word for text in texts for word in text.split()}))

    # ------------------------------------------------------------------ preference pairs

    def pairs(self, n, *, seed=0, split="train", label_noise=0.0):
        """Draw n labelled preference pairs, a table in the columns of PKU-SafeRLHF.

        better_response_id follows Bradley-Terry on r (1 unit of r = 1 nat) and then flips with
        probability `label_noise`; safer_response_id is the safe response of a mixed pair, else
        Bradley-Terry on -c. Pair i has a generator of its own, so the first rows do not depend on
        n. Raises ValueError where n < 1 or `label_noise` lies outside [0, 1].
        """
        if not 0 <= label_noise <= 1:
            raise ValueError(f"label_noise={label_noise}: a share, between 0 and 1")
        if n < 1:
            raise ValueError(f"n={n}: at least one pair is needed")
        ids, rows = self.select(split), []
        for i in range(n):
            u = generator(seed, "pair", i).random(7)  # the first one is free
            x = ids[int(u[1] * len(ids))]
            rows.append((x, self.two_responses(x, u[2:4]), u[4:7]))
        return self.labelled(rows, label_noise=label_noise)

    def two_responses(self, x, u):
        """Two different responses to prompt x from two uniforms, the second from what is left."""
        b = self.behaviour[x]
        first = _draw(b, u[0])
        return [first, _draw(np.where(np.arange(len(b)) == first, 0.0, b), u[1])]

    def labelled(self, rows, *, label_noise=0.0):
        """The table of pairs from rows: (prompt id, two response numbers, three uniforms).

        The uniforms decide which is better, whether noise flips that, and which is safer.
        """
        x, y, u = (np.array(column) for column in zip(*rows))
        r, c = (values[x[:, None], y] for values in (self.reward, self.cost))
        safe = c <= 0
        better = (u[:, 0] >= _sigmoid(r[:, 0] - r[:, 1])).astype(int) ^ (u[:, 1] < label_noise)
        drawn = (u[:, 2] >= _sigmoid(c[:, 1] - c[:, 0])).astype(int)
        safer = np.where(safe[:, 0] != safe[:, 1], safe[:, 1].astype(int), drawn)
        table = {"prompt": [self.prompts[i].text for i in x]}
        for k in (0, 1):
            table[f"response_{k}"] = [self.text(i, j) for i, j in zip(x, y[:, k])]
        for k in (0, 1):
            table[f"is_response_{k}_safe"] = safe[:, k]
        table |= {"better_response_id": better, "safer_response_id": safer}
        table |= {"source": "world", "prompt_id": x}
        for name, values in (("y", y), ("reward", r), ("cost", c)):
            table |= {f"{name}_0": values[:, 0], f"{name}_1": values[:, 1]}
        return pd.DataFrame(table)

    def behaviour_samples(self, n, *, seed):
        """n draws (prompt id, response number) over all prompts, for fine-tuning: int [n, 2]."""
        u = generator(seed, "behaviour").random((n, 2))
        x = (u[:, 0] * len(self.prompts)).astype(int)
        return np.array([(i, _draw(self.behaviour[i], v)) for i, v in zip(x, u[:, 1])])

    def cache_content(self):
        """All texts, and the oracle and the behaviour as they are now."""
        return [self.fingerprint, self.reward, self.cost, self.behaviour, self.refuses]

    @cached_property
    def fingerprint(self):
        """Hash of all texts and oracle values: it changes whenever the world does."""
        h = hashlib.sha256(repr([(x.text, x.split) for x in self.prompts]).encode())
        h.update(repr([y.text(c) for c in self.categories for y in self.responses]).encode())
        h.update(np.round(self.reward, 6).tobytes() + np.round(self.cost, 6).tobytes())
        return h.hexdigest()[:12]


def _draw(weights, u):
    """The index that a uniform picks; where rounding passes the end, the last with any weight."""
    cumulative = np.cumsum(weights)
    index = np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return int(min(index, np.flatnonzero(weights)[-1]))


def _sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))
