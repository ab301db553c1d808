"""A papermill engine that keeps one kernel warm: imports are paid once, every run starts as in a new kernel.

Between runs the namespace, the history, the user's and the kit's own modules, the random states and the settings
that a notebook can change go back to what they were after the imports (`cleaning.py`). A kernel that cannot be
trusted to be clean again (an error, a thread left behind) is thrown away. On Linux kernels are forked from one
process that has imported everything, the standard library's fork server; elsewhere each imports for itself.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import uuid

from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from jupyter_core.utils import run_sync
from papermill.engines import NBClientEngine, papermill_engines

from .engines import KERNEL, CheckedClient
from .forking import HOME, fork_server, is_found

sys.modules.setdefault(
    "rfc3987_syntax", None
)  # jsonschema would build a grammar for a second, to check addresses
NAME = "warm"
PATH = [folder for folder in sys.path if folder]  # of the fork server, which is a plain interpreter
_kernels = {}  # one for each thread that runs notebooks


class WarmEngine(NBClientEngine):
    """Executes a notebook in this thread's warm kernel."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, start_timeout=60, **_):
        kernel = _clean_kernel(kernel_name, start_timeout)
        try:
            given = dict(kernel_name=kernel_name, timeout=None, coalesce_streams=True)
            client = CheckedClient(nb_man, km=kernel.manager, **given)
            client.kc = kernel.client
            client.execute()
        except BaseException:
            discard()
            raise
        if any(
            output.output_type == "error"
            for cell in nb_man.nb.cells
            for output in cell.get("outputs", [])
        ):
            discard()


papermill_engines.register(NAME, WarmEngine)


def discard():
    """Stop this thread's kernel, if it has one."""
    if kernel := _kernels.pop(threading.get_ident(), None):
        kernel.stop()


@atexit.register
def _stop_all():
    while _kernels:
        _kernels.popitem()[1].stop()


def _clean_kernel(kernel_name, timeout):
    """This thread's kernel, made clean; a new one where there is none, or none that can be used."""
    me = threading.get_ident()
    alive = {t.ident for t in threading.enumerate()}
    for gone in [ident for ident in _kernels if ident not in alive]:
        _kernels.pop(gone).stop()
    if me in _kernels and not _kernels[me].reset():
        discard()
    if me not in _kernels:
        _kernels[me] = _Kernel(kernel_name, timeout)
    return _kernels[me]


class _Kernel:
    def __init__(self, name, timeout):
        self.manager = AsyncKernelManager(kernel_name=name, kernel_id=str(uuid.uuid4()))
        if (
            sys.platform == "linux" and not multiprocessing.current_process().daemon
        ):  # a daemon may have no children
            given = dict(kernel_id=self.manager.kernel_id, kernel_spec=self.manager.kernel_spec)
            self.manager.provisioner = _Forked(parent=self.manager, **given)
        run_sync(self.manager.start_kernel)(extra_arguments=KERNEL["extra_arguments"])
        self.client = self.manager.client()
        self.client.start_channels()
        try:
            run_sync(self.client.wait_for_ready)(timeout=timeout)
            self.client.allow_stdin = False
            if not self._silently(
                "from safealign_utils.runs import cleaning; cleaning.remember(); del cleaning"
            ):
                raise RuntimeError(
                    "the kernel cannot import safealign_utils; install the package where it runs"
                )
        except BaseException:
            self.stop()
            raise

    def reset(self):
        """Make the kernel as it was; False if it cannot be used any more."""
        return bool(run_sync(self.manager.is_alive)()) and self._silently(
            "get_ipython().safealign_reset()"
        )

    def _silently(self, code):
        try:
            reply = run_sync(self.client.execute_interactive)(
                code,
                silent=True,
                store_history=False,
                timeout=120,
                output_hook=lambda message: None,
            )
        except (TimeoutError, RuntimeError):
            return False
        return reply["content"]["status"] == "ok"

    def stop(self):
        self.client.stop_channels()
        run_sync(self.manager.shutdown_kernel)(now=True)


class _Forked(LocalProvisioner):
    """Starts a kernel by a fork of the fork server, in place of a new interpreter."""

    async def launch_kernel(self, cmd, **options):
        fork_server()
        arguments = cmd[cmd.index("-f") :]
        given = arguments, options["env"], os.getcwd()
        context = multiprocessing.get_context("forkserver")
        self.process = _Process(context.Process(target=_serve, args=given, daemon=True))
        self.pid, self.pgid, self.cwd = self.process.pid, None, os.getcwd()
        return self.connection_info


class _Process:
    """A multiprocessing.Process with the names of subprocess.Popen that jupyter_client asks for."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self._process = process
        process.start()
        self.pid, self.kill, self.terminate = process.pid, process.kill, process.terminate

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _serve(arguments, environment, folder):
    """Be a kernel until the process that asked for it is no more."""
    os.setsid()  # a Ctrl-C is for the parent
    os.environ.clear(), os.environ.update(environment), os.chdir(folder)
    sys.path[:] = PATH
    if not is_found(["", *PATH]):  # a new kernel here would find another copy, or none
        sys.path.insert(0, str(HOME))

    def end_with_parent():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(arguments)
