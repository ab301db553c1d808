"""A sweep's scheduler takes tasks from its own client alone."""

import json
import re
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import dask
import pytest
from dask.distributed import LocalCluster, Security

from safealign_utils.runs import pool
from safealign_utils.study.settings import Refusal

FOREIGN = """
import os, sys
from dask.distributed import Client, Security
kind, address, place = sys.argv[1:]
security = Security.temporary() if kind == "a certificate of its own" else None
address = address.replace("tls://", "tcp://") if kind == "no certificate, plain" else address
try:
    with Client(address, security=security, timeout=4) as client:
        client.run_on_scheduler(os.mkdir, place)
except Exception as error:
    print(type(error).__name__, error)
"""
KINDS = ("no certificate", "no certificate, plain", "a certificate of its own")


def foreign(kind, address, place):
    """What another process of this machine is answered that tries to have code run."""
    words = [sys.executable, "-c", FOREIGN, kind, address, str(place)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return done.stdout


@pytest.fixture(scope="module")
def client():
    with pool._client(1, "") as own:
        yield own


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_client_cannot_connect(kind, client, tmp_path):
    said = foreign(kind, client.scheduler.address, tmp_path / "ran")
    assert said and not (tmp_path / "ran").exists(), said
    assert client.submit(abs, -1).result() == 1, "the sweep's own goes on"


def test_it_could_without_a_certificate(tmp_path):
    """The same client where the scheduler asks for none: the test above would notice."""
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:
        assert not foreign("no certificate", cluster.scheduler_address, tmp_path / "ran")
    assert (tmp_path / "ran").exists()


def test_the_scheduler_is_on_loopback_without_web_pages(client):
    assert re.fullmatch(r"tls://127\.0\.0\.1:\d+", client.scheduler.address)
    (worker,) = client.cluster.workers.values()
    assert worker.address.startswith("tls://127.0.0.1:")
    for server in (client.cluster.scheduler.http_server, worker.http_server):
        assert server.address == "127.0.0.1"
        for page in (
            "",
            "status",
            "health",
            "json/counts.json",
            "info/main/workers.html",
            "statics/",
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{server.port}/{page}", timeout=5)


def test_dasks_own_files_lie_under_a_name_that_nobody_can_guess(client):
    (worker,) = client.cluster.workers.values()
    folder = next(
        p for p in Path(worker.local_directory).parents if p.name.startswith("safealign.")
    )
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_every_sweep_has_a_certificate_of_its_own(client):
    with pool._client(1, "") as other:
        keys = {str(c.security.get_tls_config_for_role("client")) for c in (client, other)}
        assert len(keys) == 2


def test_a_scheduler_without_a_certificate_is_named():
    client = type("Client", (), dict(scheduler_info=lambda self, n_workers: {"workers": {}}))()
    client.dashboard_link = "http://a"
    for address, warned in (("tcp://a:1", True), ("tls://a:1", False)):
        client.scheduler = type("Scheduler", (), dict(address=address))
        said = pool._greeting(client, address)
        assert ("may run code as you" in said) == warned and "no worker yet" in said


def test_a_scheduler_with_certificates_is_reached_by_dasks_own_settings(tmp_path):
    """What the README says of `--scheduler tls://...`; a client without the files is kept out."""
    keys = Security.temporary().get_tls_config_for_role("client")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca_file", "cert", "key")}
    for name, file in files.items():
        file.write_text(keys[name])
    flags = [
        w for name, file in files.items() for w in (f"--tls-{name.replace('_', '-')}", str(file))
    ]
    where = tmp_path / "scheduler.json"
    own = ["--host", "127.0.0.1", "--protocol", "tls", "--port", "0", "--no-dashboard"]
    command = [str(Path(sys.executable).with_name("dask")), "scheduler", *own, *flags]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    scheduler = subprocess.Popen([*command, "--scheduler-file", str(where)], **quiet)
    try:
        while not (where.is_file() and where.read_text().strip()):
            assert scheduler.poll() is None
            time.sleep(0.1)
        address = json.loads(where.read_text())["address"]
        part = {"ca_file": "ca-file", "cert": "client.cert", "key": "client.key"}
        tls = {f"distributed.comm.tls.{part[name]}": str(file) for name, file in files.items()}
        with dask.config.set(tls), pool._client(1, address) as client:
            assert "run code as you" not in pool._greeting(client, address)
        said = foreign("a certificate of its own", address, tmp_path / "ran")
        assert said and not (tmp_path / "ran").exists()
        with pytest.raises(Refusal, match="no Dask scheduler answers"), pool._client(1, address):
            pass
    finally:
        scheduler.terminate()
        scheduler.wait(30)
