"""PPO-Lagrangian of Safe RLHF (Dai et al., arXiv 2310.12773): what C-DPO and SafeDPO replace.

Each iteration samples responses from the policy, scores them with a reward and a cost, spreads both
over tokens with a critic of two outputs (generalised advantage estimation), and takes clipped
policy-gradient steps on (A_r - lambda A_c) / (1 + lambda), while log lambda follows a moving
average of the episodes' cost.

*Differs from the paper:*
1. One network with two outputs is both critics, and starts from the policy's weights.
2. The surrogate is one mean over all tokens of a minibatch, so a longer response weighs more.
3. The critic's loss is the mean square, without the factor 1/2, over tokens and both outputs.
4. lambda moves once an iteration, before its updates, by the mean cost of the last 512 episodes.
5. Neither rewards nor values are clipped, and there is no pre-training loss.
6. The learning rate falls linearly to 0; every response is used in two passes.
7. `beta` is ours: without it the temperature on r - lambda c changes with lambda.
8. Reward and cost come from scorers of texts, in the kit from the world's oracle.
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
LAMBDA, LAMBDA_LR, LAMBDA_MAX = 1.0, 0.1, 5.0  # the first multiplier, its step size, its limit
EPISODES = 512  # whose mean cost moves lambda
SAMPLES, EPOCHS, MINIBATCH = 8, 2, 64  # responses a prompt, passes over them, responses a step
MAX_TOKENS = 48  # of a response: enough for any of the world's


@dataclass(frozen=True)
class Setting:
    """How long and how fast; `cost_limit` on E[c], and the strength of the KL penalty.

    The penalty kl_coeff (log pi - log pi_ref) is taken from the reward and added to the cost, token
    by token, as in the authors' code, so the temperature on r - lambda c is kl_coeff (1 + lambda).
    With `beta` given, kl_coeff = beta / (1 + lambda) throughout, and the optimum at a fixed lambda
    is pi*_lambda. Raises ValueError for values out of range.
    """

    cost_limit: float
    iterations: int
    learning_rate: float
    seed: int
    beta: float | None = None
    kl_coeff: float = 0.01

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: a whole number, 1 or above")
        for name in ("learning_rate", "beta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}={value}: a finite number above 0")

    def coefficient(self, lam):
        """The penalty's coefficient at a multiplier."""
        return self.kl_coeff if self.beta is None else self.beta / (1 + lam)


@dataclass(frozen=True)
class PPO:
    """The trained policy, its lambda, one row an iteration; sampled responses and seconds."""

    policy: Policy
    lam: float
    log: pd.DataFrame
    samples: int
    seconds: float


def ppo_lagrangian(reference, prompts, *, reward, cost, **setting):
    """Train on prompts of the world (ids [P]) with scorers of their texts: a `PPO`.

    `reward` and `cost` are functions (prompt texts, responses) -> float [N]; `setting` are the
    fields of `Setting`. Each iteration draws 8 responses to every prompt. lambda never exceeds 5: a
    limit whose lambda* lies above is not met.
    """
    setting = Setting(**setting)
    prompts = list(map(int, prompts))
    inputs = dict(reference=reference, prompts=prompts, reward=reward, cost=cost, setting=setting)
    key = cache.key("ppo", **inputs)
    if found := load_trained(key, reference):
        policy, log, info = found
        return PPO(policy, info["lam"], log, info["samples"], info["seconds"])
    start, world = time.perf_counter(), reference.grammar.world
    texts = [world.prompts[i].text for i in np.repeat(prompts, SAMPLES)]
    policy, log = _train(reference, texts, reward, cost, setting)
    lam, samples = float(log.lam.iloc[-1]), len(log) * len(texts)
    seconds = time.perf_counter() - start
    store_trained(key, policy.model, log, lam=lam, samples=samples, seconds=seconds)
    return PPO(policy, lam, log, samples, seconds)


def _train(reference, texts, reward, cost, setting):
    """The loop: (the policy, one row an iteration), from N prompt texts."""
    policy, lam, rows, recent = reference.copy(), LAMBDA, [], deque(maxlen=EPISODES)
    with seeded(setting.seed):
        networks = _Networks(LogProbs(policy).eval(), LogProbs(reference).eval(), Critic(reference))
        optimizer = torch.optim.AdamW(
            [*networks.actor.parameters(), *networks.critic.parameters()],
            lr=setting.learning_rate,
            betas=BETAS,
            weight_decay=0.0,
            fused=True,
        )
        for iteration in range(setting.iterations):
            rate = setting.learning_rate * (1 - iteration / setting.iterations)
            optimizer.param_groups[0]["lr"] = rate
            u = generator(setting.seed, "rollouts", iteration).random((len(texts), MAX_TOKENS))
            drawn = draw(policy, texts, u)
            scores = [scorer(texts, drawn.texts) for scorer in (reward, cost)]
            recent.extend(scores[1].tolist())
            lam = next_lambda(lam, float(np.mean(recent)), setting.cost_limit)
            order = generator(setting.seed, "minibatches", iteration).permutation(len(texts))
            rollouts = [
                _rollout(networks, policy, drawn, part, scores, lam, setting.coefficient(lam))
                for part in np.array_split(order, -(-len(texts) // MINIBATCH))
            ]
            for rollout in EPOCHS * rollouts:
                _update(networks, optimizer, rollout)
            r, c = (values.mean() for values in scores)
            rows.append({"iteration": iteration + 1, "lam": lam, "reward": r, "cost": c})
    return policy, pd.DataFrame(rows).astype(float)


def next_lambda(lam, cost, cost_limit):
    """log lambda <- log lambda + lambda_lr lambda (J_C - cost_limit), at most LAMBDA_MAX."""
    return min(lam * float(np.exp(LAMBDA_LR * lam * (cost - cost_limit))), LAMBDA_MAX)


# ---------------------------------------------------------------- networks and advantages
class Critic(torch.nn.Module):
    """Two values [K, 2], of reward and of cost, before every token.

    A copy of the policy's network with a linear head that starts at 0.
    """

    def __init__(self, policy):
        super().__init__()
        self.model = copy.deepcopy(policy.model)
        width = self.model.get_output_embeddings().in_features
        self.head = torch.nn.Linear(width, 2, dtype=next(self.model.parameters()).dtype)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch):
        return self.head(hidden_states(self.model, batch))


@dataclass(frozen=True)
class _Networks:
    """What is trained (actor, critic), and the frozen reference."""

    actor: LogProbs
    frozen: LogProbs
    critic: Critic


def generalised_advantages(rewards, values, mask):
    """Generalised advantages (gamma 1, lambda 0.95) and returns of rewards and values, [B, T]."""
    carry, out = torch.zeros_like(values[:, 0]), []
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    delta = (rewards + after - values) * mask
    for t in reversed(range(values.shape[1])):
        carry = delta[:, t] + GAE * carry
        out.append(carry)
    out = torch.stack(out[::-1], dim=1) * mask
    return out, out + values


def policy_loss(logp, old, advantage):
    """The clipped surrogate, a mean over K tokens; log-probs now and then, and advantages, [K]."""
    ratio = (logp - old).exp()
    clipped = ratio.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


@dataclass(frozen=True)
class _Rollout:
    """One minibatch with what stays fixed in its updates: K tokens of B responses."""

    batch: Packed
    old: torch.Tensor
    advantage: torch.Tensor
    returns: torch.Tensor


@torch.no_grad()
def _rollout(networks, policy, drawn, rows, scores, lam, coefficient):
    """Responses `rows` of a `Drawn` with their advantages under the policy that drew them.

    `scores` are reward and cost, each float [N]; `coefficient` is that of the KL penalty.
    """
    responses = [drawn.responses[i] for i in rows]
    allowed = None if drawn.allowed is None else [[drawn.allowed[i] for i in rows]]
    prompts = [drawn.prompts[i] for i in rows]
    batch = pack(prompts, [responses], pad_id=policy.pad_id, allowed=allowed).to(policy.device)
    old, values = networks.actor(batch)[0], networks.critic(batch)
    penalty = coefficient * (old - networks.frozen(batch)[0])
    lengths = np.array([len(y) for y in responses])
    mask = length_mask(lengths).to(old.device)
    advantages, returns = [], []
    for k, sign in ((0, -1), (1, 1)):  # the penalty lowers the reward and raises the cost
        token_rewards, token_values = old.new_zeros(2, *mask.shape)
        token_rewards[mask], token_values[mask] = sign * penalty, values[:, k]
        token_rewards[range(len(rows)), lengths - 1] += torch.as_tensor(scores[k][rows]).to(old)
        advantage, target = generalised_advantages(token_rewards, token_values, mask.to(old))
        advantages.append(advantage[mask])
        returns.append(target[mask])
    mixed = (advantages[0] - lam * advantages[1]) / (1 + lam)
    return _Rollout(batch, old, mixed, torch.stack(returns, dim=1))


def _update(networks, optimizer, rollout):
    """One step of both networks on a minibatch."""
    surrogate = policy_loss(networks.actor(rollout.batch)[0], rollout.old, rollout.advantage)
    value_loss = (networks.critic(rollout.batch) - rollout.returns).square().mean()
    (surrogate + value_loss).backward()
    for network in (networks.actor, networks.critic):
        torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()
