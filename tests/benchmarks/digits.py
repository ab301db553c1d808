"""How far the same 60 alignment steps end apart on other instruction sets and thread counts, by precision.

Prints the largest difference over the metrics of the held-out nouns. Run: python tests/benchmarks/digits.py
"""

import json
import os
import subprocess
import sys
import tempfile

HERE = {
    "the machine's own": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "2 threads": {"SAFEALIGN_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
}


def one(dtype):
    from safealign_utils import evaluate, pairs, train
    from safealign_utils.references import reference_policy
    from safealign_utils.world import optimum
    from safealign_utils.world.world import World

    world = World()
    policy = reference_policy(world, seed=0)[0].to(dtype)
    tokens = pairs.tokenize(pairs.label(world.pairs(1500, seed=0)), policy)
    setting = dict(beta=0.5, steps=60, batch_size=32, learning_rate=3e-3, seed=0, leak_weight=0.1)
    x = world.select("heldout")
    ref = evaluate.exact(policy, x)
    theta = evaluate.exact(train.align(policy, tokens, **setting).policy, x)
    star = optimum.optimal(ref.logp, world.reward[x], beta=0.5)
    print(json.dumps(evaluate.metrics(theta, ref, world, target=star)))


def main():
    for dtype in ("float64", "float32"):
        found = {}
        for name, environment in HERE.items():
            with tempfile.TemporaryDirectory() as cache:
                run = subprocess.run(
                    [sys.executable, __file__, dtype],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, **environment, "SAFEALIGN_CACHE": cache},
                )
            found[name] = json.loads(run.stdout.splitlines()[-1])
        own = found.pop("the machine's own")
        for name, values in found.items():
            worst = max(own, key=lambda k: abs(values[k] - own[k]))
            print(
                f"{dtype}, {name:<10} largest difference {abs(values[worst] - own[worst]):.1e} ({worst})"
            )


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
