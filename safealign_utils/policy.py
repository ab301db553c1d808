"""Policies: a plain transformers causal LM with its tokenizer, built, loaded, saved, or fine-tuned.

The reference policies of the default world for seeds 0 to 4 are shipped (`reference_policies/`, made by
`python -m safealign_utils.policy`), because training one from scratch is chaotic: another instruction
set ends 1e-3 away, and every later number moves as much as between two seeds.
"""

import contextlib
import json
import os
import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import adapters, cache, processes
from .content import settings_of
from .double import cast
from .grammar import Grammar
from .language import EOS
from .logprobs import LogProbs, pack
from .real import hub, weights
from .tokens import check_template, encode_prompts, encode_responses

NOT_CONTENT = ("_name_or_path", "transformers_version", "dtype", "architectures", "use_cache")
LARGE = 10**7  # weights: from here on a hash takes long enough to be kept
_hashes = weakref.WeakKeyDictionary()
SHIPPED = Path(__file__).parent / "reference_policies"
WORLD_MODEL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=176)
SFT = dict(steps=1600, batch_size=32, learning_rate=6e-3)
SCRATCH_VOCABULARY = 2048
SCRATCH_MODEL = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=352)
SCRATCH_SFT = dict(steps=200, batch_size=16, learning_rate=3e-3)

torch.set_num_threads(int(os.environ.get("SAFEALIGN_THREADS", "1")))  # two spinning processes are 10x slower
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads it; filling cost 9 % of a step
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Policy:
    """A causal language model and how it is read.

    `grammar` is the world's trie, or None for real text; `constrained` reads the model through the grammar
    softmax; `bf16` computes in bfloat16 with weights in float32 (under an adapter: in bfloat16); `template` names
    the form of a prompt on real text (`tokens.py`). A policy is never changed in place: training copies it.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    grammar: Grammar | None = None
    constrained: bool = False
    bf16: bool = False
    template: str = "dialogue"

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
        hooks = [[*part._forward_hooks.values(), *part._forward_pre_hooks.values()] for part in net.modules()]
        attention = getattr(net.config, "_attn_implementation", "")
        return [self.hash, self.constrained, self.bf16, self.grammar, self.device.type, attention, parts, hooks]

    @property
    def device(self):
        return next(self.model.parameters()).device

    @property
    def pad_id(self):
        """The padding token's id. It is masked wherever it stands, so any id will do."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def copy(self, **changes):
        """A copy with weights of its own; those under an adapter, which nobody changes, are shared."""
        return replace(self, model=adapters.copy_sharing(self.model, lambda p: not p.requires_grad), **changes)

    def to(self, dtype, device="cpu"):
        """A copy that computes in float64, float32 or bfloat16 (weights then stay in float32) on a device."""
        moved = self.copy(bf16=dtype == "bfloat16")
        cast(moved.model, double=dtype == "float64").to(processes.own_device(device))
        return moved

    @cached_property
    def base(self):
        """What an adapter on this policy stands on, and its reference (`adapters.base`)."""
        return adapters.base(self)

    def merged(self):
        """The policy with its adapter added to the weights, a plain model; itself where it has none."""
        return adapters.merged(self)

    def save(self, folder):
        """Write model (merged) and tokenizer (safetensors) so that plain transformers can load them."""
        self.merged().model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def weights_hash(net, *said):
    """Hash of a network's weights and buffers, and of further plain values.

    A large network is not read twice: it counts as unchanged while version, place and sum of every
    tensor are.
    """
    state = sorted(net.state_dict().items())
    if sum(v.numel() for _, v in state) < LARGE:
        return cache.digest({k: adapters.array(v) for k, v in state}, *said)
    stamp = [[k, v.data_ptr(), v._version, float(v.double().sum())] for k, v in state], said
    known = _hashes.get(net)
    if known is None or known[0] != stamp:
        _hashes[net] = stamp, cache.digest({k: adapters.array(v) for k, v in state}, *said)
    return _hashes[net][1]


def word_tokenizer(words):
    """One token per word, split at spaces; ids 0 <pad>, 1 <unk>, 2 </s>, then the words in order."""
    ids = {w: i for i, w in enumerate(["<pad>", "<unk>", EOS, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def new_policy(tokenizer, *, seed, grammar=None, init_std=0.08, max_positions=512, **shape):
    """A Llama with fresh weights; the seed is set before the model is built.

    init_std 0.08, not Llama's 0.02: the narrow start leaves a network this small far from the grammar.
    """
    shape = {**WORLD_MODEL, **shape}
    config = LlamaConfig(
        vocab_size=len(tokenizer), initializer_range=init_std, tie_word_embeddings=True,
        max_position_embeddings=max_positions,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        attn_implementation="sdpa", **shape,
    )  # fmt: skip
    with seeded(seed):
        return Policy(LlamaForCausalLM(config).eval(), tokenizer, grammar)


@contextlib.contextmanager
def seeded(seed):
    """Set torch's generator for a block and leave the caller's state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_policy(name, *, revision=""):
    """Load a folder or, where there is none, a hub id (owner/name@revision too), in float32:
    safetensors only.

    Raises ValueError for what `check_model` refuses, and where a weight is missing, unexpected or
    misshapen.
    """
    check_model(name, revision=revision)
    what, (id, options) = f"model={name!r}", hub.located(name, revision)
    with weights.loading(what, name, revision):
        tokenizer = transformers.AutoTokenizer.from_pretrained(id, **options)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            id, dtype=torch.float32, use_safetensors=True, attn_implementation="sdpa", **weights.REPORTED, **options
        )
    weights.check_report(what, type(model), report)
    policy = Policy(model.eval(), tokenizer)
    _check_readable(name, policy)
    return policy


def _check_readable(name, policy):
    """Refuse an architecture whose log-probs the hot path would misread: logit scaling, soft caps, no plain masks."""
    prompt, reply = np.array([5, 6, 7]), np.array([8, 9, 10])
    kind = policy.model.config.model_type
    try:
        with torch.no_grad():
            packed = LogProbs(policy).eval()(pack([prompt] * 2, [[reply, reply], [reply, reply]], pad_id=0))[0][:3]
            plain = policy.model(torch.tensor([[*prompt, *reply]])).logits[0, 2:-1].float().log_softmax(-1)
        error = float((plain[range(3), reply] - packed).abs().max())
    except (TypeError, ValueError, RuntimeError, AttributeError) as reason:
        raise ValueError(
            f"model={name!r}: {kind} models take no packed rows ({reason}); use Llama, Qwen2, Mistral or GPT-2"
        ) from reason
    if not error < 1e-3:
        raise ValueError(
            f"model={name!r}: log-probs of {kind} models are misread by {error:.2g} nats; "
            "use Llama, Qwen2, Mistral or GPT-2"
        )


def check_model(name, *, revision="", template="dialogue", max_length=0, new_tokens=0):
    """The configuration of a model. Refuses early what `load_policy` could not use; reads headers,
    and no weights.

    The model must have positions for rows of `max_length` tokens, prompt and response, and for a
    prompt and an answer of `new_tokens` tokens.
    """
    folder, what = Path(name), f"model={name!r}"
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ValueError(f"{what}: no such folder; give a folder, a hub id as owner/name, or world")
    id, options = hub.located(name, revision)
    with weights.loading(what, name, revision):
        weights.check_no_adapter(what, id, options)
        if folder.is_dir():
            weights.weight_files(what, folder)
        config = transformers.AutoConfig.from_pretrained(id, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(id, **options)
        weights.check_not_quantised(what, config)
        with torch.device("meta"):
            network = type(transformers.AutoModelForCausalLM.from_config(config))
        if Path(id).is_dir():  # of a hub id too, where only its copy in the cache can be asked
            weights.check_files(what, id, config, network)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{what}: its tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json"
        )
    weights.check_ids(what, tokenizer, config)
    room = weights.positions(config)
    if room and max_length > room:
        raise ValueError(f"max_length={max_length}: {what} has {room} positions; use {room} or less")
    if room and new_tokens >= room:
        raise ValueError(f"new_tokens={new_tokens}: {what} has {room} positions for prompt and answer; use fewer")
    check_template(tokenizer, template)
    return config


# ---------------------------------------------------------------- the world's reference policies


def world_policy(world, *, seed, **shape):
    """A policy of the world with fresh weights; `shape` changes that of WORLD_MODEL."""
    tokenizer = word_tokenizer(world.words)
    return new_policy(tokenizer, seed=seed, grammar=Grammar(world, tokenizer.get_vocab()), **shape)


def reference_policy(world, *, seed):
    """The SFT policy of a seed, float32: (policy, origin).

    Origin is "shipped" for seeds 0 to 4 of the default world, else "trained" (and then cached).
    """
    policy = world_policy(world, seed=seed)
    file = SHIPPED / f"{world.size}_seed{seed}.safetensors"
    if file.is_file():
        shipped = load_file(file)
        shipped["lm_head.weight"] = shipped.get("model.embed_tokens.weight")  # tied to the embeddings
        shapes = lambda state: {name: getattr(value, "shape", None) for name, value in state.items()}
        if shapes(shipped) != shapes(policy.model.state_dict()):
            raise ValueError(f"{file.name} was made for another world; run python -m safealign_utils.policy")
        policy.model.load_state_dict(shipped)
        return policy, "shipped"
    return train_reference(world, seed=seed), "trained"


def train_reference(world, *, seed, use_cache=True, shape=None, **changes):
    """Fine-tune a fresh policy on behaviour samples of every prompt (float32). `shape`: another network's."""
    from .train import fine_tune

    setting = {**SFT, **changes}
    policy = world_policy(world, seed=seed, **(shape or {}))
    samples = world.behaviour_samples(setting["steps"] * setting["batch_size"], seed=seed)
    ids = [np.array(policy.tokenizer(x.text)["input_ids"]) for x in world.prompts]
    prompts = [ids[x] for x, _ in samples]
    responses = [policy.grammar.response(x, y)[0] for x, y in samples]
    return fine_tune(policy, prompts, responses, seed=seed, use_cache=use_cache, **setting).policy


# ---------------------------------------------------------------- from scratch on real text


def scratch_policy(texts, prompts, responses, *, seed, max_length):
    """A byte-pair tokenizer and a small Llama trained on nothing but the given texts, then fine-tuned.

    `texts` train the tokenizer; `prompts`, `responses` (lists of N strings) the network.
    """
    from .train import fine_tune

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SCRATCH_VOCABULARY, special_tokens=["<pad>", EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token=EOS, clean_up_tokenization_spaces=False
    )
    policy = new_policy(tokenizer, seed=seed, init_std=0.02, max_positions=max(512, max_length), **SCRATCH_MODEL)
    x, y = encode_prompts(prompts, policy), encode_responses(responses, tokenizer)
    x = [ids[-max_length // 2 :] for ids in x]
    y = [ids[: max_length - len(start)] for ids, start in zip(y, x)]
    return fine_tune(policy, x, y, seed=seed, **SCRATCH_SFT).policy


def main():
    """Make the shipped reference policies again."""
    from .world import World

    world = World()
    for seed in range(5):
        state = train_reference(world, seed=seed, use_cache=False).model.state_dict()
        state.pop("lm_head.weight", None)  # tied to the embeddings
        save_file({k: v.contiguous() for k, v in state.items()}, SHIPPED / f"default_seed{seed}.safetensors")
        print(f"seed {seed}: written")


if __name__ == "__main__":
    main()
