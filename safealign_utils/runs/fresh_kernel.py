"""A new kernel for every run, forked from one process that has imported everything (Linux).

That process is the standard library's fork server: a plain interpreter without threads, so that a
fork of it is safe. A forked kernel starts like a new one, without its imports, and ends with the
process that asked for it. Elsewhere, and for another python3 than this one, kernels are new.
"""

import atexit
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import uuid
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from ..engine import cache

PRELOAD = [__name__.replace("fresh_kernel", "preload"), __name__]
_lock = threading.Lock()  # while the server is started the whole process stands in another folder
LONGEST = 107  # bytes of a socket's path
OF_SERVER = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # below the folder of temporary files
OF_KERNEL = "/socket-5"  # below its own folder
_code = []  # hash of the source as the server was started, and started again


def fork_server():
    """Start the process that imports everything, unless it runs already, this is no Linux, or its
    socket, in the folder of temporary files, would have too long a path."""
    with _lock:
        if sys.platform != "linux" or _is_running(forkserver._forkserver._forkserver_pid):
            return
        if len(os.fsencode(tempfile.gettempdir())) > LONGEST - len(OF_SERVER):
            return
        _code.append(cache.code_hash())
        forkserver.set_forkserver_preload(PRELOAD)
        here = os.getcwd()
        os.chdir(cache.PACKAGE.parent)  # a plain interpreter looks first where it starts
        try:
            forkserver.ensure_running()
        finally:
            os.chdir(here)


def _is_running(child):
    """Whether a child process runs; its end is left for others to see."""
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return child is not None and os.waitid(os.P_PID, child, look) is None


class Manager(AsyncKernelManager):
    """Starts kernels by a fork, where they are the same as new ones; speaks with them in private.

    A port that was found free may be another kernel's when it is bound, and whoever is on the
    machine can listen there; so the sockets lie in a folder of their own, for this user alone.
    """

    async def _async_pre_start_kernel(self, **options):
        self.kernel_id = self.kernel_id or str(uuid.uuid4())
        if sys.platform == "linux" and not self.kernel_spec.metadata.get("kernel_provisioner"):
            given = dict(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec)
            self.provisioner = _Provisioner(parent=self, **given)
            self._use_sockets()
        return await super()._async_pre_start_kernel(**options)

    def _use_sockets(self):
        folder = tempfile.mkdtemp(prefix="kernel.")
        if len(os.fsencode(folder + OF_KERNEL)) > LONGEST:
            os.rmdir(folder)
        else:
            self.transport, self.ip = "ipc", f"{folder}/socket"

    def cleanup_ipc_files(self):
        super().cleanup_ipc_files()
        if self.transport == "ipc":
            shutil.rmtree(os.path.dirname(self.ip), ignore_errors=True)


class _Provisioner(LocalProvisioner):
    async def launch_kernel(self, cmd, **options):
        fork_server()
        own = Path(cmd[0]).absolute().parent == Path(sys.executable).absolute().parent
        if not own or self.kernel_spec.env or {*_code} != {cache.code_hash()}:
            return await super().launch_kernel(cmd, **options)
        multiprocessing.current_process().daemon = False  # as Dask's workers are: may have children
        folder = options.get("cwd") or os.getcwd()
        self.process = _Kernel(cmd[cmd.index("-f") :], options["env"], folder)
        self.process.leftovers = [self.parent.connection_file]
        if self.parent.transport == "ipc":
            self.process.leftovers.append(os.path.dirname(self.parent.ip))
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class _Kernel(multiprocessing.get_context("forkserver").Process):
    """A forked kernel, with the names of subprocess.Popen that jupyter_client asks for."""

    stdin = stdout = stderr = None

    def __init__(self, arguments, environment, folder):
        super().__init__(daemon=True)
        self.given = arguments, environment, folder
        self.leftovers = []  # what whoever asked for it would have removed

    def poll(self):
        return self.exitcode

    def wait(self):
        self.join()
        return self.exitcode

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def run(self):
        """Be a kernel until the process that asked for it is no more."""
        import numpy
        import torch
        from ipykernel.kernelapp import IPKernelApp

        from . import preload

        arguments, environment, folder = self.given
        self.daemon = False  # a notebook may start processes
        os.setsid()  # Ctrl-C is for the command
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[:] = preload.PATH
        numpy.random.seed()  # random numbers start anywhere; Python's do so after a fork
        torch.seed()
        atexit.unregister(os._exit)
        threading.Thread(target=_end_with, args=[os.getppid(), self.leftovers], daemon=True).start()
        IPKernelApp.launch_instance(arguments)
        atexit._run_exitfuncs()  # those of the notebook, which a forked process would leave out


def _end_with(server, leftovers):
    """End when the fork server or the process that asked for this kernel has ended; what the latter
    would have removed is removed here."""
    parent = multiprocessing.parent_process().sentinel
    while os.getppid() == server and not wait([parent], timeout=1):
        pass
    if wait([parent], timeout=0):
        for path in leftovers:
            remove = shutil.rmtree if os.path.isdir(path) else os.remove
            with contextlib.suppress(OSError):
                remove(path)
    os._exit(1)
