"""What accelerate does for the training loop: its set-up for one process or several, and
checkpoints of a run.

A checkpoint (what is trained, optimiser, schedule, random states, position, log) lies on disk and
is resumed exactly, also with another number of processes. Process 0 decides when it is written and
what is read.
"""

import contextlib
import os
import shutil
import time

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors import SafetensorError
from safetensors.torch import load_file

from . import cache, distributed, live
from . import lora as adapters

WAIT = 30.0  # seconds between two states
SHARE = 0.05  # of the time that writing them may take


class Damaged(RuntimeError):
    """A state on disk that cannot be read, or was taken away by a process with the same task."""


def accelerator_for(policy):
    """An accelerate.Accelerator for a policy's device and precision, whatever the environment says
    of these.

    Under FSDP the weights are gathered in their own type and the module's own autocast computes:
    the losses are those of one process. Raises ValueError for the first version of FSDP, and for
    what `distributed.check_environment` refuses.
    """
    distributed.check_environment()
    distributed.join()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sharded = distributed.is_on("ACCELERATE_USE_FSDP")
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("fsdp_version: 1; write fsdp_version: 2 in the accelerate configuration")
    precision = "bf16" if policy.bf16 and not (sharded and distributed.count() > 1) else "no"
    with distributed.set_aside(ACCELERATE_TORCH_DEVICE=str(policy.device)):
        return Accelerator(cpu=policy.device.type == "cpu", mixed_precision=precision)


def whole(accelerator, net, build):
    """The trained module without accelerate's wrapping; FSDP's parts are put together in a new one
    (`build()`)."""
    if not accelerator.is_fsdp2:
        return accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    module = build()
    state = module.state_dict()
    with torch.no_grad():
        # One after another: there is no room for two copies.
        for name, value in adapters.trained_state(net).items():
            state[name].copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)
    return module


class Checkpoint:
    """`step` and `log` (a dict a step) of a run, and its state in a `folder` (None: nothing is
    written).

    Made after `accelerator.prepare`; the last state on disk is then loaded. Raises Damaged, and
    removes it, where it cannot be.
    """

    def __init__(self, accelerator, schedule, folder, save_every):
        self.step, self.log = 0, []
        self.accelerator, self.folder, self.save_every = accelerator, folder, save_every
        self.written, self.took = time.monotonic(), 0.0
        # FSDP's files are read by FSDP alone.
        self.kind = "shards" if accelerator.is_fsdp2 else "state"
        accelerator.register_for_checkpointing(schedule, self)
        accelerator.register_save_state_pre_hook(self._only_what_is_trained)
        accelerator.register_load_state_pre_hook(self._load_weights)
        states = sorted(folder.glob(f"{self.kind}-????????")) if folder else []
        if state := distributed.agree(str(states[-1]) if states else ""):
            self._load(state)

    def state_dict(self):
        """Position and log, in the form that accelerate saves."""
        return {"step": self.step, "rows": self.log}

    def load_state_dict(self, state):
        self.step, self.log = state["step"], list(state["rows"])

    @staticmethod
    def remove(folder):
        shutil.rmtree(folder, ignore_errors=True)

    def add(self, means, norm):
        """A step is done: what is logged of it, and the norm of its gradient."""
        self.step += 1
        self.log.append({"step": self.step, **means, "grad_norm": norm})

    def due(self, steps):
        """Whether process 0 wants the state of this step written, on every process."""
        if not self.folder or self.step >= steps:
            return False
        if self.save_every:
            return self.step % self.save_every == 0
        return distributed.agree(time.monotonic() - self.written > max(WAIT, self.took / SHARE))

    def write(self):
        """Write the state beside its place, rename it, drop older ones. Another run may do the
        same. Returns where.

        On a disk that is full or cannot be written the run goes on, and an older state stays.
        """
        if not self.folder:
            return "nowhere, as the run has no cache"
        start, first = time.monotonic(), distributed.rank() == 0
        final = self.folder / f"{self.kind}-{self.step:08d}"
        beside = self.folder / distributed.agree(live.hidden("state", "partial"))
        failed = self._save(beside) if distributed.agree(not final.exists()) else ""
        if failed:
            cache.say(
                f"the state of a training cannot be written ({failed}); going on without it. "
                f"{cache.ROOM}"
            )
        elif first:
            self._rename(beside, final)
        if first:
            shutil.rmtree(beside, ignore_errors=True)
        self.written = time.monotonic()
        self.took = self.written - start
        return f"nowhere ({failed})" if failed else final

    def _rename(self, beside, final):
        with contextlib.suppress(OSError):  # the other one was first, with the same state
            beside.rename(final)
        for old in self.folder.glob(f"{self.kind}-????????"):
            if old.name < final.name:
                shutil.rmtree(old, ignore_errors=True)

    def _save(self, folder):
        """Write the state of all processes into a new folder: "", or what went wrong with one of
        them."""
        failed = ""
        if distributed.rank() == 0:
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                failed = str(error)
        failed = distributed.agree(failed)
        if failed:
            return failed
        try:
            self.accelerator.save_state(str(folder))
        except (OSError, RuntimeError, SafetensorError) as error:
            failed = str(error).splitlines()[0]
        return next(filter(None, distributed.gather(failed)), "")

    def _load(self, state):
        readable = True
        try:
            self.accelerator.load_state(state)
        except (OSError, RuntimeError, EOFError, SafetensorError):
            readable = False
        if not all(distributed.gather(readable)):
            shutil.rmtree(state, ignore_errors=True)
            raise Damaged(state)

    def _only_what_is_trained(self, models, weights, folder):
        if weights:  # FSDP writes its own
            nets = [self.accelerator.unwrap_model(net) for net in models]
            weights[:] = [adapters.trained_state(net) for net in nets]

    def _load_weights(self, models, folder):
        while models:  # what is left would be loaded by accelerate, by the names that DDP gives
            weights = load_file(os.path.join(folder, "model.safetensors"))
            if not adapters.put_trained(self.accelerator.unwrap_model(models.pop()), weights):
                raise RuntimeError(f"{folder} holds other weights than those that are trained")
