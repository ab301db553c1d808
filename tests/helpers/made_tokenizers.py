"""Tokenizers of the usual families, trained here on a few sentences, with their chat templates in short."""

from dataclasses import dataclass

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "USER: How do I cut bread? ASSISTANT: With a knife.",
    "BEGINNING OF CONVERSATION: user assistant system With",
]
# How Llama 3 and Qwen cut a text: line ends stay together, whatever follows.
LINES = Regex(r"\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\p{N}{1,3}| ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+")


def train(bpe, special):
    alphabet = ["\n"] if bpe.normalizer else pre_tokenizers.ByteLevel.alphabet()
    options = dict(
        vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trainer = trainers.BpeTrainer(**options)
    bpe.train_from_iterator([*TEXTS, "".join(map(chr, range(32, 127)))], trainer)
    return bpe


def byte_level(special, *, chat=None, lines=False, **names):
    """A byte-level tokenizer; with `lines` it cuts texts as Llama 3 does, else as GPT-2."""
    bpe, whole = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    if lines:
        apart = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        whole = pre_tokenizers.Sequence([pre_tokenizers.Split(LINES, "isolated"), apart])
    bpe.pre_tokenizer, bpe.decoder = whole, decoders.ByteLevel()
    train(bpe, special)
    if "bos_token" in names:  # as Llama 3's: a plain call puts BOS before the text
        bos = names["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, clean_up_tokenization_spaces=False, **names
    )
    made.chat_template = chat
    return made


def sentencepiece(special=("<unk>", "<s>", "</s>"), *, chat, blank=True, **names):
    """Sentencepiece's way: blanks are ▁, and with `blank` one is put before every text."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    before = [normalizers.Prepend("▁")] if blank else []
    bpe.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token spans words
    parts = [decoders.Replace("▁", " "), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if blank else [])])
    train(bpe, list(special))
    bos = special[1]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    names = dict(bos_token=bos, eos_token=special[2], unk_token="<unk>") | names
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    made.chat_template = chat
    return made


# ---------------------------------------------------------------- templates
SYSTEM = (
    "{{% for m in messages %}}{{% if loop.first and m['role'] != 'system' %}}"
    "<|im_start|>system\n{}<|im_end|>\n{{% endif %}}"
)
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + ASK
QWEN = SYSTEM.format("You are Qwen. You are a helpful assistant.") + TURN + ASK
SMOL = SYSTEM.format("You are a helpful assistant named SmolLM.") + TURN + ASK
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DATED = LLAMA3.replace(
    "{{ bos_token }}",
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
    "2023\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>",
)
# BOS before every question, blanks around every answer.
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
    "{{ m['content'].strip() }} [/INST]{% elif m['role'] == 'assistant' %} "
    "{{ m['content'].strip() }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TULU = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or m['role'] != 'assistant' %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# No token ends a turn: words mark the next one.
VICUNA = (
    "{{ bos_token }}A chat. {% for m in messages %}{% if m['role'] == 'user' %}USER: "
    "{{ m['content'] }} {% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """How a family writes a chat: `end` ends an answer, `bos` is there once a chat (None: not at
    all; "every": before each question), `system` is the default system prompt."""

    make: object
    end: str
    bos: str | None = "once"
    system: str = ""
    takes_system: bool = True


def chatml(chat, eos="<|im_end|>", **names):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return lambda: byte_level(special, eos_token=eos, chat=chat, lines=True, **names)


def llama3(chat=LLAMA3):
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ]
    names = dict(bos_token=special[0], eos_token=special[1], pad_token="<|eot_id|>")
    return lambda: byte_level(special, chat=chat, lines=True, **names)


def pieces(chat, **names):
    return lambda: sentencepiece(chat=chat, pad_token="</s>", **names)


GEMMA_TOKENS = ("<unk>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
QWEN_SYSTEM, SMOL_SYSTEM = "You are Qwen. You are", "You are a helpful assistant named SmolLM."
FAMILIES = {
    "chatml": Family(chatml(CHATML, pad_token="<|im_end|>"), "<|im_end|>", None),
    "chatml, another eos": Family(chatml(CHATML, "<|endoftext|>"), "<|im_end|>", None),
    "qwen": Family(chatml(QWEN, pad_token="<|endoftext|>"), "<|im_end|>", None, QWEN_SYSTEM),
    "smollm2": Family(
        chatml(SMOL, bos_token="<|im_start|>", pad_token="<|im_end|>"),
        "<|im_end|>",
        "opens every turn",
        SMOL_SYSTEM,
    ),
    "llama 3": Family(llama3(), "<|eot_id|>"),
    "llama 3.2": Family(llama3(DATED), "<|eot_id|>", system="Today Date: 26 Jul 2024"),
    "llama 2": Family(pieces(LLAMA2), "</s>", "every", takes_system=False),
    "mistral": Family(pieces(MISTRAL), "</s>", takes_system=False),
    "zephyr": Family(pieces(ZEPHYR), "</s>", None),
    "tulu": Family(pieces(TULU), "</s>"),
    "vicuna": Family(pieces(VICUNA), "</s>", system="A chat."),
    "gemma": Family(
        lambda: sentencepiece(GEMMA_TOKENS, chat=GEMMA, blank=False, pad_token="<pad>"),
        "<end_of_turn>",
        takes_system=False,
    ),
}
