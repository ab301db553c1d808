"""Opening a real model as a policy: refuses early what could not be used."""

import functools

import numpy as np
import torch
import transformers

from ..engine import boundary
from ..engine.boundary import Refusal
from ..logprobs import LogProbs
from ..packing import pack
from ..policy import Policy
from ..templates import check_template
from . import weights


@boundary.reader("model", weights.FIX)
def load_policy(name, *, revision="", template="dialogue"):
    """Load a folder or a hub id (owner/name@revision too) in float32, safetensors only.

    Raises ValueError for what `check_model` refuses, where a weight is missing, unexpected or
    misshapen, and for an architecture whose log-probs would be misread.
    """
    opened = check_model(name, revision=revision, template=template)
    model = opened.load(dtype=torch.float32, attn_implementation="sdpa")
    policy = Policy(model, opened.tokenizer, template=template)
    _check_readable(opened.what, policy)
    return policy


@boundary.reader("model", weights.FIX)
def check_model(name, *, revision="", template="dialogue", max_length=0, new_tokens=0):
    """The `weights.Opened` of a model: refuses early what could not be used; reads headers only.

    The model must have positions for rows of `max_length` tokens, prompt and response, and for a
    prompt and an answer of `new_tokens` tokens; its tokenizer must be able to write the template.
    """
    network_of = functools.partial(weights.network_class, transformers.AutoModelForCausalLM)
    opened = weights.open_model("model", name, revision, network_of)
    what, room = opened.what, weights.positions(opened.config)
    if opened.tokenizer.eos_token_id is None:
        why = "its tokenizer has no end-of-sequence token"
        raise Refusal(f"{what}: {why}; set eos_token in its tokenizer_config.json")
    if room and max_length > room:
        why = f"{what} has {room} positions"
        raise Refusal(f"max_length={max_length}: {why}; use {room} or less")
    if room and new_tokens >= room:
        why = f"{what} has {room} positions for prompt and answer"
        raise Refusal(f"new_tokens={new_tokens}: {why}; use fewer")
    check_template(opened.tokenizer, template)
    return opened


@torch.no_grad()
def _check_readable(what, policy):
    """Refuse an architecture whose log-probs the hot path misreads: logit scaling, soft caps."""
    prompt, reply = np.array([5, 6, 7]), np.array([8, 9, 10])
    kind, use = policy.model.config.model_type, "use Llama, Qwen2, Mistral or GPT-2"
    try:
        rows = pack([prompt] * 2, [[reply, reply], [reply, reply]], pad_id=0)
        packed = LogProbs(policy).eval()(rows)[0][:3]
        logits = policy.model(torch.tensor([[*prompt, *reply]])).logits[0, 2:-1]
        plain = logits.float().log_softmax(-1)[range(3), reply]
        error = float((plain - packed).abs().max())
    except (TypeError, ValueError, RuntimeError, AttributeError) as reason:
        said = boundary.reason(reason)
        raise Refusal(f"{what}: {kind} models take no packed rows ({said}); {use}") from reason
    if not error < 1e-3:
        raise Refusal(f"{what}: {kind} models are misread by {error:.2g} nats; {use}")
