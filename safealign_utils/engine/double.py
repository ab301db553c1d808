"""A Llama that computes in float64 all the way.

transformers' Llama computes its norms, its softmax and its rotary angles in float32 whatever the
type of its weights, so that a "float64" model still carries rounding errors of 1e-8, which differ
between processors and grow in training. These two modules and the sdpa attention do not. The
formulas are the same.
"""

import torch
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding


class DoubleNorm(LlamaRMSNorm):
    def forward(self, x):
        return rms_norm(x, (x.shape[-1],), self.weight, self.variance_epsilon)


class DoubleRotary(LlamaRotaryEmbedding):
    def forward(self, x, position_ids):
        d, theta = 2 * len(self.inv_freq), self.config.rope_parameters["rope_theta"]
        frequency = theta ** -(torch.arange(0, d, 2, dtype=x.dtype, device=x.device) / d)
        angle = (position_ids[..., None] * frequency).repeat(1, 1, 2)
        return angle.cos(), angle.sin()


def cast(model, double):
    """Turn a model to float64 (`double=True`) or float32, in place. Of a Llama with plain rotary
    positions the norms and angles are exchanged too; other models only change the type of their
    weights."""
    model.double() if double else model.float()
    rope = getattr(model.config, "rope_parameters", None) or {}
    if model.config.model_type == "llama" and rope.get("rope_type") == "default":
        model.set_attn_implementation("sdpa")
        for module in model.modules():
            for plain, exact in ((LlamaRMSNorm, DoubleNorm), (LlamaRotaryEmbedding, DoubleRotary)):
                if type(module) in (plain, exact):
                    module.__class__ = exact if double else plain
    return model
