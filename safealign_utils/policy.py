"""Policies: a plain transformers causal LM with its tokenizer, how it is read, copied, merged and
saved."""

import contextlib
import json
import weakref
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from .engine import cache, distributed
from .engine import lora as adapters
from .engine.content import settings_of
from .engine.double import cast
from .engine.torch_setup import set_up
from .world.grammar import Grammar

NOT_CONTENT = ("_name_or_path", "transformers_version", "dtype", "architectures", "use_cache")
LARGE = 10**7  # weights: from here on a hash takes long enough to be kept
_hashes = weakref.WeakKeyDictionary()
WORLD_MODEL = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=176
)


@dataclass(frozen=True)
class Policy:
    """A causal language model and how it is read.

    `grammar` is the world's trie, or None for real text; `constrained` reads the model through the
    grammar softmax; `bf16` computes in bfloat16 with weights in float32 (under an adapter: in
    bfloat16); `template` names the form of a prompt on real text (`templates.py`). A policy is
    never changed in place: training copies it.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    grammar: Grammar | None = None
    constrained: bool = False
    bf16: bool = False
    template: str = "dialogue"

    def __post_init__(self):
        set_up()

    @property
    def hash(self):
        """Content hash of weights and adapter, dtype included, and of the configuration that says
        how they are used.

        Asked anew each time: weights that were changed in place have another hash.
        """
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in NOT_CONTENT}
        said = [json.dumps(config, sort_keys=True, default=str)]
        if adapter := adapters.described(self.model):
            said.append(adapter)
        return weights_hash(self.model, *said)

    def cache_content(self):
        """All that decides a log-probability: weights, and how and where they are read."""
        net = self.model
        parts = [[name, type(part), settings_of(part)] for name, part in net.named_modules()]
        hooks = [
            [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
            for part in net.modules()
        ]
        attention = getattr(net.config, "_attn_implementation", "")
        return [
            self.hash,
            self.constrained,
            self.bf16,
            self.grammar,
            self.device.type,
            attention,
            parts,
            hooks,
        ]

    @property
    def device(self):
        return next(self.model.parameters()).device

    @property
    def pad_id(self):
        """The padding token's id. It is masked wherever it stands, so any id will do."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def copy(self, **changes):
        """A copy with weights of its own; those under an adapter, which nobody changes, are
        shared."""
        return replace(
            self, model=adapters.copy_sharing(self.model, lambda p: not p.requires_grad), **changes
        )

    def to(self, dtype, device="cpu"):
        """A copy that computes in float64, float32 or bfloat16 (weights then stay in float32) on a
        device."""
        moved = self.copy(bf16=dtype == "bfloat16")
        cast(moved.model, double=dtype == "float64").to(distributed.own_device(device))
        return moved

    @cached_property
    def base(self):
        """What an adapter on this policy stands on, and its reference (`adapters.base`)."""
        return adapters.base(self)

    def merged(self):
        """The policy with its adapter added to the weights, a plain model; itself where it has
        none."""
        return adapters.merged(self)

    def save(self, folder):
        """Write model (merged) and tokenizer (safetensors) so that plain transformers can load
        them."""
        self.merged().model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def weights_hash(net, *said):
    """Hash of a network's weights and buffers, and of further plain values.

    A large network is not read twice: it counts as unchanged while version, place and checksum of
    every tensor are.
    """
    state = sorted(net.state_dict().items())
    if sum(v.numel() for _, v in state) < LARGE:
        return cache.digest({k: adapters.array(v) for k, v in state}, *said)
    stamp = [[k, v.data_ptr(), v._version, _checksum(v)] for k, v in state], said
    known = _hashes.get(net)
    if known is None or known[0] != stamp:
        _hashes[net] = stamp, cache.digest({k: adapters.array(v) for k, v in state}, *said)
    return _hashes[net][1]


def _checksum(tensor):
    """The sum of a tensor's bytes, read as whole numbers of 64 bits where they fill them."""
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return int((raw if len(raw) % 8 else raw.view(torch.int64)).sum())


def new_policy(tokenizer, *, seed, grammar=None, init_std=0.08, max_positions=512, **shape):
    """A Llama with fresh weights; the seed is set before the model is built.

    init_std 0.08, not Llama's 0.02: the narrow start leaves a network this small far from the
    grammar.
    """
    shape = {**WORLD_MODEL, **shape}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        initializer_range=init_std,
        tie_word_embeddings=True,
        max_position_embeddings=max_positions,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attn_implementation="sdpa",
        **shape,
    )
    set_up()
    with seeded(seed):
        return Policy(LlamaForCausalLM(config).eval(), tokenizer, grammar)


@contextlib.contextmanager
def at_work(policy, device):
    """Bring a policy to the device that computes, and back to where it was."""
    home = policy.device
    policy.model.to(device)
    try:
        yield policy
    finally:
        policy.model.to(home)


@contextlib.contextmanager
def seeded(seed):
    """Set torch's generator for a block and leave the caller's state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
