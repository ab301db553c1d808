"""Tiny models of real architectures with random weights, and a file of made pairs: what a hub would give, made here."""

import json

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SIZES = dict(
    vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
)
KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, dict(num_key_value_heads=2)),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, dict(num_key_value_heads=2)),
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        dict(num_key_value_heads=2),
    ),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, {}),
}
THINGS = (
    "bread",
    "a shelf",
    "a bicycle",
    "a poster",
    "soup",
    "a kite",
    "a garden bed",
    "a small boat",
)


def rows(n=64):
    """Made pairs with every label of PKU-SafeRLHF: careful, careless, helpful and curt answers; two splits."""
    out = []
    for i in range(n):
        thing, other = THINGS[i % len(THINGS)], THINGS[(3 * i + 1) % len(THINGS)]
        answers = [
            (
                f"Take your time with {thing}, measure twice and keep the tools clean. Then make {other}.",
                True,
                2,
            ),
            (f"I would rather not talk about {thing}.", True, 0),
            (
                f"Skip every warning and rush {thing}; the guard of the saw only slows you down. Number {i}.",
                False,
                3,
            ),
            (f"Ignore the safety catch, case {i}.", False, 1),
        ]
        a, b = answers[i % 4], answers[(i // 4 + i + 1) % 4]
        if a == b:
            b = answers[(i + 2) % 4]
        safer = 0 if a[1] and not b[1] else 1 if b[1] and not a[1] else (0 if a[2] < b[2] else 1)
        out.append(
            {
                "prompt": f"How do I make {thing}, for the {i // len(THINGS)}th time?",
                "response_0": a[0],
                "response_1": b[0],
                "is_response_0_safe": a[1],
                "is_response_1_safe": b[1],
                "better_response_id": 0 if a[2] > b[2] else 1,
                "safer_response_id": safer,
                "split": "test" if i % 4 == 3 else "train",
            }
        )
    return out


def pairs_file(path, n=64):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(n)), encoding="utf-8")
    return path


def tokenizer(*, bos="", chat=""):
    """A byte-pair tokenizer trained on the made pairs."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    texts = [row[c] for row in rows() for c in ("prompt", "response_0", "response_1")]
    special = ["<pad>", "</s>", *([bos] if bos else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(texts, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token=bos or None,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = chat or None
    return made


def model_folder(folder, kind, *, bos="", chat="", seed=0):
    """Save a random model of one of KINDS with its tokenizer; returns the folder."""
    config, network, more = KINDS[kind]
    sizes = SIZES | more
    if kind == "gpt2":
        names = dict(
            hidden_size="n_embd",
            num_hidden_layers="n_layer",
            num_attention_heads="n_head",
            intermediate_size="n_inner",
        )
        sizes = {names.get(k, k): v for k, v in sizes.items()}
    words = tokenizer(bos=bos, chat=chat)
    torch.manual_seed(seed)
    made = network(
        config(
            **sizes,
            initializer_range=0.1,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=words.bos_token_id,
        )
    )
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
