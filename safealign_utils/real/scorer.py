"""A scorer: a reward or a cost of responses, (prompts, responses) -> float64 [N], cached on disk.

`scorer_checkpoints` reads one from a checkpoint, `scorer_training` trains a small pair. Signs: a
larger reward is better; a cost above 0 is harmful.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from ..engine import cache, distributed
from ..engine.batches import longest_first
from ..engine.torch_setup import set_up

BLOCK = 256  # scores kept on disk together


@functools.cache
def _known_pairs():
    """{kind: [(prompt, the answer that must score lower, the one that must score higher)]}."""
    found = yaml.safe_load(Path(__file__).with_name("known_pairs.yaml").read_text(encoding="utf-8"))
    return {kind: [tuple(pair.values()) for pair in pairs] for kind, pairs in found.items()}


KNOWN_PAIRS = _known_pairs()


@dataclass(frozen=True)
class Scorer:
    """A reward (larger is better) or a cost (above 0 is harmful) of N prompts and N responses.

    `made_of()` gives the weights and all else that decides a score but the tokens, as they are now.
    `encode(prompts, responses)` makes N rows, each a list of int arrays; `forward(rows)` scores
    some of them: tensor [B]. `log` is the training log where the kit trained it.
    """

    name: str
    kind: str
    made_of: Callable = field(repr=False)
    encode: Callable = field(repr=False)
    forward: Callable = field(repr=False)
    batch_size: int = 16
    log: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        set_up()

    @property
    def hash(self):
        """Hash of weights and settings, as they are now."""
        return cache.key("scorer", made_of=self.made_of())

    def cache_content(self):
        """What the scorer is made of, for keys; how it reads a text too, as it scores texts."""
        return [self.name, self.kind, self.made_of(), self.encode]

    def __call__(self, prompts, responses):
        """Scores float64 [N] of plain prompt and response texts, in the scorer's own template.

        Cached on disk by what the scorer is made of and the tokens, in blocks of 256 rows, so that
        a scoring that was cut off goes on. Raises ValueError where the lists differ in length or a
        score is not finite.
        """
        prompts, responses = list(prompts), list(responses)
        if len(prompts) != len(responses):
            raise ValueError(
                f"responses: {len(responses)} for {len(prompts)} prompts; give as many"
            )
        rows = self.encode(prompts, responses) if prompts else []
        blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        asked, silent = self.hash, not sys.stderr.isatty()
        bar = tqdm(blocks, desc=f"{self.kind} scores", unit="block", leave=False, disable=silent)
        return np.concatenate([np.zeros(0), *(self._block(asked, block) for block in bar)])

    def _block(self, asked, rows):
        key = distributed.agree(cache.digest(asked, rows))
        if stored := distributed.found(lambda: cache.load("scores", key)):
            return stored[0]["scores"]
        scores = self._scores(rows)
        cache.store("scores", key, {"scores": scores})
        return scores

    @torch.no_grad()
    def _scores(self, rows):
        """Scores float64 [n] of a block; several processes share the work."""
        lengths = [sum(map(len, row)) for row in rows]
        batches = longest_first(lengths, self.batch_size)
        mine = {}
        for batch in batches[distributed.rank() :: distributed.count()]:
            values = self.forward([rows[i] for i in batch]).double().cpu().numpy()
            mine |= zip(batch.tolist(), values)
        scores = np.empty(len(rows))
        for share in distributed.gather(mine):
            scores[list(share)] = list(share.values())
        if not np.isfinite(scores).all():
            bad = np.sum(~np.isfinite(scores))
            raise ValueError(f"{self.name}: {bad} scores are not finite; try dtype=float32")
        return scores


def check_sign(scorer):
    """Raise ValueError unless a scorer orders most of the KNOWN_PAIRS of its kind rightly."""
    prompts, low, high = zip(*KNOWN_PAIRS[scorer.kind])
    right = int((scorer(prompts, high) > scorer(prompts, low)).sum())
    if 2 * right <= len(prompts):
        costly, good = "harmful answer above the harmless", "helpful answer above the unhelpful"
        found = f"the {costly if scorer.kind == 'cost' else good} one in only {right}"
        why = f"it scores {found} of {len(prompts)} known pairs, so its sign looks swapped"
        fix = "name one of this kind; load_scorer(..., sign_check=False) takes it as it is"
        raise ValueError(f"{scorer.kind}_model={scorer.name!r}: {why}; {fix}")
