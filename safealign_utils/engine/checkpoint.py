"""What accelerate does for the training loop: its set-up for one process or several, and the state that is kept.

The state of a long run (what is trained, optimiser, schedule, random states, position, log) lies on disk and is
resumed exactly, also with another number of processes. Process 0 decides when it is written and what is read.
"""

import contextlib
import logging
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

logging.getLogger("accelerate.utils.other").setLevel(
    logging.ERROR
)  # tied weights are saved once, by design
WAIT, SHARE = (
    30.0,
    0.05,
)  # seconds between two states, and the share of the time that writing them may take


class Damaged(RuntimeError):
    """A kept state that cannot be read, or was taken away by a process with the same task."""


def accelerator_for(policy):
    """An accelerate.Accelerator for a policy's device and precision, whatever the environment says
    of these.

    Under FSDP the weights are gathered in their own type and the module's own autocast computes: the losses are those
    of one process. Raises ValueError for the first version of FSDP, and for what
    `distributed.check_environment` refuses.
    """
    distributed.check_environment()
    distributed.join()
    AcceleratorState._reset_state(reset_partial_state=True), GradientState._reset_state()
    sharded = distributed.is_on("ACCELERATE_USE_FSDP")
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("fsdp_version: 1; write fsdp_version: 2 in the accelerate configuration")
    precision = "bf16" if policy.bf16 and not (sharded and distributed.count() > 1) else "no"
    with distributed.set_aside(ACCELERATE_TORCH_DEVICE=str(policy.device)):
        return Accelerator(cpu=policy.device.type == "cpu", mixed_precision=precision)


def whole(accelerator, net, build):
    """The trained module without accelerate's wrapping; FSDP's parts are put together in a new one (`build()`)."""
    if not accelerator.is_fsdp2:
        return accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    module = build()
    state = module.state_dict()
    with torch.no_grad():
        for name, value in adapters.trained_state(
            net
        ).items():  # one after another: there is no room for two copies
            state[name].copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)
    return module


class _Progress:
    """Position and log of a run, in the form that accelerate saves."""

    def __init__(self):
        self.step, self.rows = 0, []

    def state_dict(self):
        return {"step": self.step, "rows": self.rows}

    def load_state_dict(self, state):
        self.step, self.rows = state["step"], list(state["rows"])


class Kept(_Progress):
    """`step` and `rows` (of the log) of a run, and its state in the folder `place` (None: nothing is kept).

    Made after `accelerator.prepare`; what was kept is then loaded. Raises Damaged, and removes it, where it cannot be.
    """

    def __init__(self, accelerator, schedule, place, save_every):
        super().__init__()
        self.accelerator, self.place, self.save_every = accelerator, place, save_every
        self.written, self.took = time.monotonic(), 0.0
        accelerator.register_for_checkpointing(schedule, self)
        accelerator.register_save_state_pre_hook(self._only_what_is_trained)
        accelerator.register_load_state_pre_hook(self._load_weights)
        self.kind = (
            "shards" if accelerator.is_fsdp2 else "state"
        )  # FSDP's files are read by FSDP alone
        states = sorted(place.glob(f"{self.kind}-????????")) if place else []
        if state := distributed.agree(str(states[-1]) if states else ""):
            readable = True
            try:
                accelerator.load_state(state)
            except (OSError, RuntimeError, EOFError, SafetensorError):
                readable = False
            if not all(distributed.gather(readable)):
                shutil.rmtree(state, ignore_errors=True)
                raise Damaged(state)

    @staticmethod
    def remove(place):
        shutil.rmtree(place, ignore_errors=True)

    def due(self, going_on):
        """1 if process 0 wants the state written after this step, else 0; what counts is the sum over processes."""
        if not self.place or not going_on or distributed.rank():
            return 0
        if self.save_every:
            return int((self.step + 1) % self.save_every == 0)
        return int(time.monotonic() - self.written > max(WAIT, self.took / SHARE))

    def write(self):
        """Write the state beside its place, rename it, drop older ones. Another run may do the
        same. Returns where.

        On a disk that is full or cannot be written the run goes on, and an older state stays.
        """
        if not self.place:
            return "nowhere, as the run has no cache"
        start, first = time.monotonic(), distributed.rank() == 0
        final = self.place / f"{self.kind}-{self.step:08d}"
        beside = self.place / distributed.agree(live.hidden("state", "partial"))
        failed = ""
        if distributed.agree(not final.exists()):
            failed = self._save(beside)
        if failed:
            cache.say(
                f"the state of a training cannot be written ({failed}); going on without it. {cache.ROOM}"
            )
        elif first:
            with contextlib.suppress(OSError):  # the other one was first, with the same state
                beside.rename(final)
            for old in self.place.glob(f"{self.kind}-????????"):
                if old.name < final.name:
                    shutil.rmtree(old, ignore_errors=True)
        if first:
            shutil.rmtree(beside, ignore_errors=True)
        self.written = time.monotonic()
        self.took = self.written - start
        return f"nowhere ({failed})" if failed else final

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

    def _only_what_is_trained(self, models, weights, folder):
        if weights:  # FSDP writes its own
            weights[:] = [
                adapters.trained_state(self.accelerator.unwrap_model(net)) for net in models
            ]

    def _load_weights(self, models, folder):
        while models:  # what is left would be loaded by accelerate, by the names that DDP gives
            weights = load_file(os.path.join(folder, "model.safetensors"))
            if not adapters.put_trained(self.accelerator.unwrap_model(models.pop()), weights):
                raise RuntimeError(f"{folder} holds other weights than those that are trained")
