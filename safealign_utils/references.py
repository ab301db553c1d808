"""Where training starts: the world's reference policies (SFT on behaviour samples), or a small
model from scratch.

The reference policies of the default world for seeds 0 to 12 are shipped
(`world/reference_policies/`, made by `python -m safealign_utils.references`), because training one
from scratch is chaotic: another instruction set ends 1e-3 away, and every later number moves as
much as between two seeds.
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .policy import new_policy
from .templates import encode_prompts, encode_responses
from .train import fine_tune
from .world.grammar import Grammar
from .world.language import EOS
from .world.world import World

SHIPPED = Path(__file__).parent / "world" / "reference_policies"
SFT = dict(steps=1600, batch_size=32, learning_rate=6e-3)
SCRATCH_VOCABULARY = 2048
SCRATCH_MODEL = dict(
    hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=352
)
SCRATCH_SFT = dict(steps=200, batch_size=16, learning_rate=3e-3)


def word_tokenizer(words):
    """One token per word, split at spaces; ids 0 <pad>, 1 <unk>, 2 </s>, then the words in
    order."""
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


# ---------------------------------------------------------------- the world's reference policies
def world_policy(world, *, seed, **shape):
    """A policy of the world with fresh weights; `shape` changes that of WORLD_MODEL."""
    tokenizer = word_tokenizer(world.words)
    return new_policy(tokenizer, seed=seed, grammar=Grammar(world, tokenizer.get_vocab()), **shape)


def reference_policy(world, *, seed):
    """The SFT policy of a seed, float32: (policy, origin).

    Origin is "shipped" for seeds 0 to 12 of the default world, else "trained" (and then cached).
    """
    policy = world_policy(world, seed=seed)
    file = SHIPPED / f"{world.size}_seed{seed}.safetensors"
    if file.is_file():
        shipped = load_file(file)
        shipped["lm_head.weight"] = shipped.get("model.embed_tokens.weight")  # tied to it
        if _shapes(shipped) != _shapes(policy.model.state_dict()):
            raise ValueError(
                f"{file.name} was made for another world; run python -m safealign_utils.references"
            )
        policy.model.load_state_dict(shipped)
        return policy, "shipped"
    return train_reference(world, seed=seed), "trained"


def _shapes(state):
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def train_reference(world, *, seed, use_cache=True, shape=None, **changes):
    """Fine-tune a fresh policy on behaviour samples of every prompt (float32). `shape`: another
    network's."""
    setting = {**SFT, **changes}
    policy = world_policy(world, seed=seed, **(shape or {}))
    samples = world.behaviour_samples(setting["steps"] * setting["batch_size"], seed=seed)
    ids = [np.array(policy.tokenizer(x.text)["input_ids"]) for x in world.prompts]
    prompts = [ids[x] for x, _ in samples]
    responses = [policy.grammar.response(x, y)[0] for x, y in samples]
    return fine_tune(policy, prompts, responses, seed=seed, use_cache=use_cache, **setting).policy


# ---------------------------------------------------------------- from scratch on real text
def scratch_policy(texts, prompts, responses, *, seed, max_length):
    """A byte-pair tokenizer and a small Llama trained on nothing but the given texts, then
    fine-tuned.

    `texts` train the tokenizer; `prompts`, `responses` (lists of N strings) the network.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SCRATCH_VOCABULARY,
        special_tokens=["<pad>", EOS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token=EOS, clean_up_tokenization_spaces=False
    )
    policy = new_policy(
        tokenizer, seed=seed, init_std=0.02, max_positions=max(512, max_length), **SCRATCH_MODEL
    )
    x, y = encode_prompts(prompts, policy), encode_responses(responses, tokenizer)
    x = [ids[-max_length // 2 :] for ids in x]
    y = [ids[: max_length - len(start)] for ids, start in zip(y, x)]
    return fine_tune(policy, x, y, seed=seed, **SCRATCH_SFT).policy


def main(arguments=None):
    """Make shipped reference policies: those that are missing, or all that are named again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("seeds", nargs="*", type=int, help="seeds, 0 or above (default: 0 to 12)")
    parser.add_argument("--again", action="store_true", help="replace what is there")
    wanted = parser.parse_args(arguments)
    world = World()
    for seed in wanted.seeds or range(13):
        file = SHIPPED / f"default_seed{seed}.safetensors"
        if file.is_file() and not wanted.again:
            print(f"seed {seed}: is there; --again makes it again")
            continue
        state = train_reference(world, seed=seed, use_cache=False).model.state_dict()
        state.pop("lm_head.weight", None)  # tied to the embeddings
        save_file({k: v.contiguous() for k, v in state.items()}, file)
        print(f"seed {seed}: written")


if __name__ == "__main__":
    main()
