"""Opening a real model as a policy: refuses early what could not be used."""

from pathlib import Path

import numpy as np
import torch
import transformers

from ..logprobs import LogProbs
from ..packing import pack
from ..policy import Policy
from ..templates import check_template
from . import hub, weights


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
            id,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="sdpa",
            **weights.REPORTED,
            **options,
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
            packed = LogProbs(policy).eval()(
                pack([prompt] * 2, [[reply, reply], [reply, reply]], pad_id=0)
            )[0][:3]
            plain = (
                policy.model(torch.tensor([[*prompt, *reply]]))
                .logits[0, 2:-1]
                .float()
                .log_softmax(-1)
            )
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
    if not folder.is_dir() and (
        folder.is_absolute() or name.startswith(".") or name.count("/") > 1
    ):
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
        raise ValueError(
            f"max_length={max_length}: {what} has {room} positions; use {room} or less"
        )
    if room and new_tokens >= room:
        raise ValueError(
            f"new_tokens={new_tokens}: {what} has {room} positions for prompt and answer; use fewer"
        )
    check_template(tokenizer, template)
    return config
