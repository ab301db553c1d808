"""Random models of real architectures at toy size, and pairs for them."""

import numpy as np
import torch

from helpers import made_models
from safealign_utils.policy import Policy
from safealign_utils.references import word_tokenizer
from safealign_utils.tokens import TokenPairs


def policy_of(kind, *, seed=0, **more):
    """A random model of a real architecture, 40 words, 2 layers, 16 wide."""
    tokenizer = word_tokenizer([f"w{i}" for i in range(37)])
    config, network, shape = made_models.KINDS[kind]
    sizes = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, **shape
    )
    if kind == "gpt2":
        sizes = dict(n_embd=16, n_layer=2, n_head=4, n_inner=24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ids = dict(pad_token_id=0, eos_token_id=2, bos_token_id=None, initializer_range=0.2)
        return Policy(network(config(vocab_size=40, **sizes, **ids, **more)).eval(), tokenizer)


def made_tokens(n=16, seed=0):
    """Pairs of different lengths; every response ends in the end-of-sequence token, 2."""
    g = np.random.default_rng(seed)
    some = lambda low, high: [g.integers(3, 40, g.integers(low, high)) for _ in range(n)]
    ended = lambda rows: [np.append(row, 2) for row in rows]
    return TokenPairs(some(3, 9), ended(some(2, 8)), ended(some(2, 8)), np.ones(n), np.zeros(n))


class Stop(Exception):
    pass


class WithHead(torch.nn.Module):
    """A network with a linear head on the last token, as a reward model has."""

    def __init__(self, policy):
        super().__init__()
        self.model = policy.model
        self.model.get_output_embeddings().requires_grad_(False)
        self.head = torch.nn.Linear(16, 1)

    def forward(self, ids):
        return self.head(self.model.base_model(ids).last_hidden_state[:, -1]).sum(1)
