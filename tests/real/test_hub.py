"""Without network: a hub id fails within seconds and says how to go on; what the local cache holds is used."""

import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from safealign_utils.policy import new_policy
from safealign_utils.real import hub, read_pairs
from safealign_utils.real.models import check_model, load_policy
from safealign_utils.references import word_tokenizer

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
ONLINE = {"revision": None, "local_files_only": False, "trust_remote_code": False}
ROW = '{"prompt": "%s", "response_0": "a", "response_1": "b", "better_response_id": 1}\n'


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing remembered, no switch, and an empty Hugging Face cache."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "_answer", (float("-inf"), ""))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for switch in hub.SWITCHES:
        monkeypatch.delenv(switch, raising=False)


@pytest.fixture
def blocked(monkeypatch):
    """Sockets that refuse at once, as where there is no network; counts the attempts."""
    tried = []

    def refuse(*a, **k):
        tried.append(a)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


@pytest.fixture(params=["names", "connections", "proxy"])
def blackhole(request, monkeypatch):
    """Packets vanish: a look-up of a name, or a connection, takes for ever and keeps no time limit."""
    from huggingface_hub.utils import close_session

    release, asked = threading.Event(), []

    def hang(host, *a, **k):
        asked.append(host)
        release.wait(60)
        raise OSError("released by the test")

    found = lambda host, port, *a, **k: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))
    ]
    if request.param == "connections":
        monkeypatch.setattr(socket, "getaddrinfo", found)
        monkeypatch.setattr(socket, "create_connection", hang)
        monkeypatch.setattr(socket.socket, "connect", hang)
    else:
        monkeypatch.setattr(socket, "getaddrinfo", hang)
    if request.param == "proxy":
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    close_session()  # a session reads the proxies when it is made
    yield SimpleNamespace(kind=request.param, asked=asked)
    release.set()
    close_session()


def cached(tmp_path, name, kind, *, commit=COMMIT, ref="main"):
    """The folder of a snapshot in the cache's own layout."""
    folder = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    if ref:
        (folder / "refs" / ref).write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def tiny(folder):
    words = word_tokenizer(["hello", "there", "USER:", "ASSISTANT:", *map(str, range(8))])
    new_policy(
        words,
        seed=0,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    ).save(folder)


# ---------------------------------------------------------------- no answer


def test_a_black_hole_is_left_within_ten_seconds(blackhole, monkeypatch):
    """With the real patience: model and data set of one command, asked one after the other."""
    monkeypatch.setattr(hub, "PATIENCE", hub.PATIENCE if blackhole.kind == "names" else 0.3)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="model='owner/name@v1'.*cannot be reached") as model:
        check_model("owner/name@v1")
    with pytest.raises(ValueError, match="data='owner/pairs'.*cannot be reached") as data:
        read_pairs.load_pairs("owner/pairs", revision="v2")
    assert time.perf_counter() - start < 10
    assert "name a local folder" in str(model.value) and "name a local file" in str(data.value)
    assert "hf download owner/name --revision v1`" in str(model.value)
    assert "hf download owner/pairs --repo-type dataset --revision v2`" in str(data.value)
    assert "no answer in" in str(model.value) and "\n" not in str(model.value)
    assert blackhole.asked, "the test's own sockets were used"
    if blackhole.kind == "proxy":
        assert {str(host) for host in blackhole.asked} <= {"proxy.invalid", "b'proxy.invalid'"}


def test_no_network_fails_at_once_and_the_answer_is_remembered(blocked, monkeypatch):
    start = time.perf_counter()
    for call in (check_model, load_policy, read_pairs.load_pairs):
        with pytest.raises(ValueError, match="cannot be reached .*name a local"):
            call("owner/name")
    tries = len(blocked)
    assert 0 < tries <= 4 and time.perf_counter() - start < 5
    assert hub.commit("owner/name") == "" and len(blocked) == tries
    monkeypatch.setattr(hub, "_answer", (time.monotonic() - hub.REMEMBER - 1, ""))
    assert hub.unreachable() and len(blocked) > tries, "asked again after a while"


@pytest.mark.parametrize(
    "status, down", [(200, False), (302, False), (405, False), (429, False), (503, True)]
)
def test_a_hub_that_is_down_is_not_asked_further(monkeypatch, status, down):
    import huggingface_hub.utils

    session = SimpleNamespace(head=lambda url, timeout: SimpleNamespace(status_code=status))
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)
    assert bool(hub.unreachable()) == down and (not down or "status 503" in hub.unreachable())
    if not down:
        assert hub.located("owner/name", "v1") == ("owner/name", ONLINE | {"revision": "v1"})
        assert hub.located("owner/name@v2", "v1") == ("owner/name", ONLINE | {"revision": "v2"})
        assert hub.located("owner/name") == ("owner/name", ONLINE)


def test_switches_of_the_user_are_kept(monkeypatch, blocked):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(hub, "_ask", lambda: "")
    with pytest.raises(
        ValueError, match="HF_DATASETS_OFFLINE is set, and the local Hugging Face cache"
    ):
        read_pairs.load_pairs("owner/pairs")
    assert not hub.unreachable() and not blocked, "models may still be asked for"
    monkeypatch.setattr(hub, "_ask", lambda: pytest.fail("asked"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        check_model("owner/name")
    assert not blocked


def test_what_is_local_asks_nobody(monkeypatch, blocked, tmp_path):
    monkeypatch.setattr(hub, "_ask", lambda: pytest.fail("asked"))
    tiny(tmp_path / "model@home")
    (tmp_path / "a.jsonl").write_text(ROW % "x")
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected\nx,a,b\n")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(ROW % "y")
    load_policy(str(tmp_path / "model@home"))
    for name in ("a.jsonl", "b.csv", "set"):
        assert len(read_pairs.load_pairs(str(tmp_path / name), revision="v1")) == 1
        assert hub.commit(str(tmp_path / name), "dataset") == ""
    with pytest.raises(ValueError, match="no such folder"):
        check_model("./owner/name/x")
    with pytest.raises(ValueError, match="no such file"):
        read_pairs.load_pairs("owner.jsonl")
    assert not blocked


# ---------------------------------------------------------------- the cache


def test_the_cache_is_used_in_a_black_hole(blackhole, tmp_path, monkeypatch):
    """Nothing on the way asks the network again: a question costs minutes there."""
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    tiny(cached(tmp_path, "owner/tiny", "model"))
    (cached(tmp_path, "owner/pairs", "dataset") / "train.jsonl").write_text(ROW % "x")
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\nx,a,b\n")
    start = time.perf_counter()
    load_policy("owner/tiny")
    assert len(read_pairs.load_pairs(f"b=owner/pairs,a={tmp_path / 'a.csv'}")) == 2
    assert time.perf_counter() - start < 8 and len(blackhole.asked) <= 2


def test_a_cached_model_needs_no_network(blocked, tmp_path):
    tiny(cached(tmp_path, "owner/tiny", "model"))
    start = time.perf_counter()
    for name, revision in (
        ("owner/tiny", ""),
        ("owner/tiny", COMMIT),
        (f"owner/tiny@{COMMIT}", ""),
        ("owner/tiny@main", OTHER),
    ):
        assert load_policy(name, revision=revision).model.config.hidden_size == 16
    assert time.perf_counter() - start < 10 and len(blocked) <= 2
    assert hub.commit("owner/tiny") == COMMIT == hub.commit("owner/tiny@main", revision=OTHER)
    assert hub.commit("owner/tiny", revision=OTHER) == OTHER, "a commit is its own name"
    with pytest.raises(
        ValueError,
        match=f"whole at revision {OTHER} .revisions there: {COMMIT[:12]}.*--revision {OTHER}",
    ):
        load_policy("owner/tiny", revision=OTHER)


def test_a_model_that_is_not_whole_is_refused(blocked, tmp_path):
    folder = cached(tmp_path, "owner/tiny", "model")
    tiny(folder)
    check_model("owner/tiny")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="does not hold it whole at revision main"):
        load_policy("owner/tiny")


def test_a_cached_data_set_needs_no_network(blocked, tmp_path):
    folder = cached(tmp_path, "owner/pairs", "dataset")
    (folder / "train.jsonl").write_text(ROW % "x" + ROW % "y")
    (folder / "test.jsonl").write_text(ROW % "z")
    for data in ("owner/pairs", f"owner/pairs@{COMMIT}", "mine=owner/pairs@main"):
        table = read_pairs.load_pairs(data)
        assert table.split.tolist() == ["train", "train", "test"] and table.prompt.tolist() == [
            "x",
            "y",
            "z",
        ]
    assert (
        table.source.unique().tolist() == ["mine"]
        and read_pairs.load_pairs("owner/pairs").source[0] == "pairs"
    )
    assert hub.commit("owner/pairs", "dataset") == COMMIT and len(blocked) <= 2
    assert [row["prompt"] for _, row in hub.load_rows("owner/pairs", split="test")] == ["z"]
    with pytest.raises(ValueError, match="prompts=owner/pairs: cannot be read .*nope"):
        list(hub.load_rows("owner/pairs", split="nope", name="prompts"))
    with pytest.raises(ValueError, match=f"revision {OTHER} .revisions there"):
        read_pairs.load_pairs("owner/pairs", revision=OTHER)


def test_a_download_that_was_interrupted_is_not_used(blocked, tmp_path):
    """A part of the rows would train without a word."""
    folder = cached(tmp_path, "owner/pairs", "dataset")
    (folder / "train.jsonl").write_text(ROW % "x")
    assert len(read_pairs.load_pairs("owner/pairs")) == 1
    (folder.parent.parent / "blobs").mkdir()
    (folder.parent.parent / "blobs" / "abc.1234.incomplete").write_text("")
    with pytest.raises(ValueError, match="does not hold it whole"):
        read_pairs.load_pairs("owner/pairs")


def test_files_that_a_download_left_out(blocked, tmp_path):
    """`hf download --include` holds a part: enough of a model to load it, but never the rows of a data set."""
    for kind in ("model", "dataset"):
        folder = cached(tmp_path, f"owner/{kind}", kind)
        tiny(folder) if kind == "model" else (folder / "train.jsonl").write_text(ROW % "x")
        files = {path.name: {"size": 1, "blob_id": "a"} for path in folder.iterdir()}
        files |= {"more.txt": {"size": 1, "blob_id": "b"}}
        (folder.parent.parent / "trees").mkdir()
        listing = json.dumps({"format_version": 1, "files": files})
        (folder.parent.parent / "trees" / f"{COMMIT}.json").write_text(listing)
    load_policy("owner/model")
    with pytest.raises(ValueError, match="does not hold it whole"):
        read_pairs.load_pairs("owner/dataset")


def test_a_part_of_a_data_set_by_the_names_of_its_card(blocked, tmp_path):
    """Splits of any name and configurations, as BeaverTails and PKU-SafeRLHF have them."""
    folder = cached(tmp_path, "owner/set", "dataset")
    (folder / "small").mkdir()
    (folder / "small" / "a.jsonl").write_text(
        '{"prompt": "x", "response": "y", "category": {"drugs": true}, "is_safe": false}\n'
    )
    (folder / "b.jsonl").write_text(ROW % "z")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: 30k_test\n    path: small/a.jsonl\n"
        "- config_name: pairs\n  data_files:\n  - split: train\n    path: b.jsonl\n---\n"
    )
    assert [r["prompt"] for _, r in hub.load_rows("owner/set", split="30k_test")] == ["x"]
    assert [r["prompt"] for _, r in hub.load_rows("owner/set", config="pairs")] == ["z"]
    with pytest.raises(ValueError, match="row 1 of 30k_test.*are no pairs"):
        read_pairs.load_pairs("owner/set")


# ---------------------------------------------------------------- with network


def test_the_hub_is_asked_for_the_revision(monkeypatch, capsys):
    import datasets

    asked, rows = (
        [],
        [
            {"prompt": "x", "chosen": "a", "rejected": "b"},
            {"prompt": "y", "chosen": "", "rejected": "b"},
        ],
    )

    def load(path, **options):
        asked.append((path, options["revision"]))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(rows))

    monkeypatch.setattr(hub, "_ask", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", load)
    table = read_pairs.load_pairs("a=owner/a@v1,b=owner/b", revision="v2")
    assert asked == [("owner/a", "v1"), ("owner/b", "v2")] and table.source.tolist() == ["a", "b"]
    assert (
        table.attrs["left_out"] == {"an empty text": 2}
        and "owner/b: 1 of 2 rows left out" in capsys.readouterr().err
    )
    table = read_pairs.load_pairs("owner/c@v3")
    assert table.source.tolist() == ["c"] and table.split.tolist() == ["train"]


def test_the_commit_of_a_hub_id(monkeypatch):
    import huggingface_hub

    asked = []

    class Api:
        def repo_info(self, name, *, repo_type, revision, timeout):
            asked.append((name, repo_type, revision))
            if name == "owner/gone":
                raise OSError("404")
            return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(hub, "_ask", lambda: "")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub.commit("owner/name@v1", "dataset") == COMMIT and asked == [
        ("owner/name", "dataset", "v1")
    ]
    assert hub.commit("owner/gone") == "" and hub.commit("world") == "" and len(asked) == 2
