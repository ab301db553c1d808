"""Distillation: a policy learns from a teacher's next-token distributions, without a contrast.

The baseline of Selective-DPO, whose trained policies end at their score reference: if that is what
is wanted, a likelihood towards the teacher is the plain way. Called DCKD where it is done on the
chosen and on the rejected response (the name from the project's plan; the paper's text was not at
hand, its loss and constants are not stated, so this is derived):

    L = sum over response tokens t of KL(teacher(. | x, y_<t) || policy(. | x, y_<t))

summed over both responses of a pair. Its minimum is the teacher, wherever the pairs lead.
"""

import torch

from ..logprobs import hidden_states
from ..train import Training, batch_order, run_training


class NextTokens(torch.nn.Module):
    """A policy's network that answers a `Packed` batch with log-probs of every token, [K, V];
    -inf for what the grammar does not allow, where the policy is `constrained`."""

    def __init__(self, policy):
        super().__init__()
        self.model, self.constrained, self.bf16 = policy.model, policy.constrained, policy.bf16

    def forward(self, batch):
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model.get_output_embeddings()(hidden_states(self.model, batch))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.constrained:
            logits = logits.masked_fill(~batch.allowed, -torch.inf)
        return logits.log_softmax(1)


def token_kl(teacher, student):
    """KL(teacher || student) at every place [K], nats, from log-probs [K, V]; what the teacher
    never says counts 0."""
    gap = torch.where(teacher == -torch.inf, 0.0, teacher - student.clamp(min=-1e30))
    return (teacher.exp() * gap).sum(1)


def distil(teacher, start, tokens, *, use_cache=True, **training):
    """Train `start` towards a teacher on both responses of pairs (`tokens.TokenPairs`): a
    `train.Trained`.

    Labels are not read. `training`: the fields of `train.Training`. The log has the loss, nats a
    pair.
    """
    training = Training(**training)
    frozen = NextTokens(teacher).eval()

    def loss_of(module, rows):
        batch = tokens.batch(rows, start).to(start.device)
        with torch.no_grad():
            target = frozen(batch)
        loss = token_kl(target, module(batch)).sum()
        return loss, {"loss": loss.item()}

    order = batch_order(len(tokens), training.steps, training.batch_size, training.seed)
    asked = dict(teacher=teacher, start=start, tokens=tokens) if use_cache else None
    how = dict(asked=asked, name="distillation", wrap=NextTokens)
    return run_training(start, loss_of, order, training, **how)
