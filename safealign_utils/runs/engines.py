"""The papermill engine of a run: a kernel of its own that imports the command's package."""

import sys

# jsonschema would build a grammar for a second; so this file is imported before all that imports it
sys.modules.setdefault("rfc3987_syntax", None)

import nbclient  # noqa: F401
import nbformat  # noqa: F401
import papermill  # noqa: F401
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from . import copies, fresh_kernel

NAME = "safealign"
# The kernel's own warnings help no user; how its text is cut into messages depends on the clock.
KERNEL = dict(kernel_manager_class=fresh_kernel.Manager, coalesce_streams=True)
KERNEL["extra_arguments"] = ["--IPKernelApp.log_level=50"]


class CheckedClient(PapermillNotebookClient):
    """Executes the cells of a notebook once it is known what its kernel imports."""

    def papermill_execute_cells(self):
        copies.check(self)
        super().papermill_execute_cells()


class Engine(NBClientEngine):
    """Executes a notebook in a new kernel."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, start_timeout=60, **_):
        given = dict(kernel_name=kernel_name, timeout=None, startup_timeout=start_timeout, **KERNEL)
        CheckedClient(nb_man, **given).execute()


papermill_engines.register(NAME, Engine)
