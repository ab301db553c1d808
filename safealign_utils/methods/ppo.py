"""Safe RLHF's PPO-Lagrangian (Dai et al., arXiv 2310.12773): the on-policy system that C-DPO and SafeDPO replace.

Each iteration samples responses from the policy, scores them with a reward and a cost, spreads both over
tokens with a critic of two outputs (generalised advantage estimation), and takes clipped policy-gradient steps on
(A_r - lambda A_c) / (1 + lambda), while log lambda follows a moving average of the episodes' cost.
"""

import copy
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..engine import cache
from ..engine.streams import generator
from ..logprobs import LogProbs, hidden_states
from ..packing import Packed, length_mask, pack
from ..policy import Policy, seeded
from ..sampling import draw
from ..train import load_trained, store_trained

GAE, CLIP_RATIO, GRADIENT_NORM, BETAS = 0.95, 0.2, 1.0, (0.9, 0.95)
EPISODES = 512  # whose mean cost moves lambda


@dataclass(frozen=True)
class PPO:
    """The trained policy, its lambda, one row an iteration, and what it took: sampled responses and seconds."""

    policy: Policy
    lam: float
    log: pd.DataFrame
    samples: int
    seconds: float


class Critic(torch.nn.Module):
    """Two values, of reward and of cost, before every token: a copy of the policy's network with a linear head."""

    def __init__(self, policy):
        super().__init__()
        self.model = copy.deepcopy(policy.model)
        width = self.model.get_output_embeddings().in_features
        self.head = torch.nn.Linear(width, 2, dtype=next(self.model.parameters()).dtype)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch):
        return self.head(hidden_states(self.model, batch))


def advantages(rewards, values, mask):
    """Generalised advantages (gamma 1, GAE lambda 0.95) and returns, both [B, T], of rewards and values [B, T]."""
    carry, out = torch.zeros_like(values[:, 0]), []
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    delta = (rewards + after - values) * mask
    for t in reversed(range(values.shape[1])):
        carry = delta[:, t] + GAE * carry
        out.append(carry)
    out = torch.stack(out[::-1], dim=1) * mask
    return out, out + values


def policy_loss(logp, old, advantage):
    """The clipped surrogate of PPO, a mean over K tokens; log-probs now and then, and advantages, all [K]."""
    ratio = (logp - old).exp()
    return -torch.minimum(
        ratio * advantage, ratio.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO) * advantage
    ).mean()


def next_lambda(lam, cost, cost_limit, lambda_lr, lambda_max):
    """log lambda <- log lambda + lambda_lr lambda (J_C - cost_limit), at most lambda_max."""
    return min(lam * float(np.exp(lambda_lr * lam * (cost - cost_limit))), lambda_max)


def ppo_lagrangian(
    reference,
    prompts,
    *,
    reward,
    cost,
    cost_limit,
    iterations,
    learning_rate,
    seed,
    beta=None,
    kl_coeff=0.01,
    lam=1.0,
    lambda_lr=0.1,
    lambda_max=5.0,
    samples=8,
    epochs=2,
    minibatch=64,
    max_tokens=48,
):
    """Train on prompts of the world (ids) with scorers of their texts; returns a `PPO`.

    Each iteration draws `samples` responses to every prompt. The penalty kl_coeff (log pi - log pi_ref)
    is taken from the reward and added to the cost, token by token, as in the authors' code, so the
    temperature on r - lambda c is kl_coeff (1 + lambda). With `beta` given, kl_coeff = beta / (1 + lambda)
    throughout, and the optimum at a fixed lambda is pi*_lambda.

    `prompts` are ids [P]; `reward` and `cost` are functions (texts, responses) -> float [N]. With `lam` 0 the
    multiplier stays 0. lambda never exceeds `lambda_max`: a limit whose lambda* lies above is not met.

    *Differs from the paper:*
    1. One network with two outputs is both critics, and starts from the policy's weights.
    2. The surrogate is one mean over all tokens of a minibatch, so a longer response weighs more.
    3. The critic's loss is the mean square, without the factor 1/2, over tokens and both outputs.
    4. lambda moves once an iteration, before its updates, by the mean cost of the last 512
    episodes. 5. Neither rewards nor values are clipped, and there is no pre-training loss.
    6. The learning rate falls linearly to 0; every response is used in `epochs` passes.
    7. `beta` is ours: without it the temperature on r - lambda c changes with lambda.
    8. Reward and cost come from scorers of texts, in the kit from the world's oracle.
    """
    for name, value in (
        ("iterations", iterations),
        ("samples", samples),
        ("epochs", epochs),
        ("minibatch", minibatch),
    ):
        if value < 1:
            raise ValueError(f"{name}={value}: a whole number, 1 or above")
    for name, value in (("learning_rate", learning_rate), ("beta", 1.0 if beta is None else beta)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value}: a finite number above 0")
    if not 0 <= lam <= lambda_max:
        raise ValueError(
            f"lam={lam}: the first multiplier lies between 0 and lambda_max={lambda_max}"
        )
    texts = [reference.grammar.world.prompts[i].text for i in np.repeat(prompts, samples)]
    key = cache.key(
        "ppo",
        reference=reference,
        prompts=list(map(int, prompts)),
        reward=reward,
        cost=cost,
        cost_limit=cost_limit,
        iterations=iterations,
        learning_rate=learning_rate,
        seed=seed,
        beta=beta,
        kl_coeff=kl_coeff,
        lam=lam,
        lambda_lr=lambda_lr,
        lambda_max=lambda_max,
        samples=samples,
        epochs=epochs,
        minibatch=minibatch,
        max_tokens=max_tokens,
    )
    if found := load_trained(key, reference):
        policy, log, info = found
        return PPO(policy, info["lam"], log, info["samples"], info["seconds"])
    start, policy, rows, costs = time.perf_counter(), reference.copy(), [], deque(maxlen=EPISODES)
    with seeded(seed):
        actor, frozen, critic = (
            LogProbs(policy).eval(),
            LogProbs(reference).eval(),
            Critic(reference),
        )
        parameters = [*actor.parameters(), *critic.parameters()]
        optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True
        )
        for iteration in range(iterations):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - iteration / iterations)
            u = generator(seed, "rollouts", iteration).random((len(texts), max_tokens))
            drawn = draw(policy, texts, u)
            r, c = (scorer(texts, drawn.texts) for scorer in (reward, cost))
            costs.extend(c.tolist())
            lam = next_lambda(lam, float(np.mean(costs)), cost_limit, lambda_lr, lambda_max)
            coefficient = kl_coeff if beta is None else beta / (1 + lam)
            g = generator(seed, "minibatches", iteration)
            parts = np.array_split(g.permutation(len(texts)), -(-len(texts) // minibatch))
            batches = [
                _rollout(drawn, rows_, policy, actor, frozen, critic, r, c, coefficient, lam)
                for rows_ in parts
            ]
            for _ in range(epochs):
                for batch in batches:
                    _update(batch, actor, critic, optimizer)
            rows.append(
                {"iteration": iteration + 1, "lam": lam, "reward": r.mean(), "cost": c.mean()}
            )
    log, seconds = pd.DataFrame(rows).astype(float), time.perf_counter() - start
    count = iterations * len(texts)
    store_trained(key, policy.model, log, lam=lam, samples=count, seconds=seconds)
    return PPO(policy, lam, log, count, seconds)


@dataclass(frozen=True)
class _Rollout:
    """One minibatch with what stays fixed in its updates: K tokens of B responses."""

    batch: Packed
    old: torch.Tensor
    advantage: torch.Tensor
    returns: torch.Tensor


@torch.no_grad()
def _rollout(drawn, rows, policy, actor, frozen, critic, reward, cost, coefficient, lam):
    """Score minibatch `rows`: token rewards, advantages and returns under the policy that drew it."""
    ids, lengths = (
        [drawn.responses[i] for i in rows],
        np.array([len(drawn.responses[i]) for i in rows]),
    )
    allowed = None if drawn.allowed is None else [[drawn.allowed[i] for i in rows]]
    batch = pack([drawn.prompts[i] for i in rows], [ids], pad_id=policy.pad_id, allowed=allowed).to(
        policy.device
    )
    old, values = actor(batch)[0], critic(batch)
    penalty = coefficient * (old - frozen(batch)[0])
    mask = length_mask(lengths).to(old.device)
    table = lambda flat: torch.zeros(mask.shape, dtype=old.dtype, device=old.device).masked_scatter(
        mask, flat
    )
    advantage, returns = [], []
    for k, (scores, sign) in enumerate(((reward, -1), (cost, 1))):
        token_rewards = table(sign * penalty)
        token_rewards[range(len(rows)), lengths - 1] += torch.as_tensor(scores[rows]).to(old)
        a, target = advantages(token_rewards, table(values[:, k]), mask.to(old))
        advantage.append(a[mask]), returns.append(target[mask])
    mixed = (advantage[0] - lam * advantage[1]) / (1 + lam)
    return _Rollout(batch, old, mixed, torch.stack(returns, dim=1))


def _update(rollout, actor, critic, optimizer):
    """One step of both networks on a minibatch."""
    surrogate = policy_loss(actor(rollout.batch)[0], rollout.old, rollout.advantage)
    value_loss = (critic(rollout.batch) - rollout.returns).square().mean()
    (surrogate + value_loss).backward()
    for network in (actor, critic):
        torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    optimizer.step(), optimizer.zero_grad()
