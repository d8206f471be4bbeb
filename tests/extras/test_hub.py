"""Models and data by their names on the Hugging Face hub: what is fetched, what each failure says.

The hub of these tests is a small http.server: nothing here needs a network.
"""
import hashlib
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from conftest import command, save_run, tiny_model, tiny_tokenizer
from huggingface_hub import constants

import eval as evaluation
from data import DataError
from extras import folders, hub
from model import CheckpointError, open_model

COMMIT, OLDER = "a" * 40, "b" * 40
REVISIONS = {"main": COMMIT, "v1": OLDER, "refs/pr/1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
TOO_MUCH = [
    "pytorch_model.bin",
    "modeling_evil.py",
    "consolidated.safetensors",
    "onnx/model.onnx",
    "sub/model.safetensors",
]
DATA = [
    "README.md",
    "train/pairs.jsonl",
    "train/more.json",
    "train/pairs.parquet",
    "train/dataset_info.json",
    "pieces/train-00000-of-00002.csv",
    "pieces/train-00001-of-00002.csv",
    "pieces/test-00000-of-00001.csv",
    "subsets/a/x.jsonl",
    "capitals/B.JSONL",
    "holes/train-00000-of-00003.csv",
    "holes/train-00002-of-00003.csv",
    "packed/a.jsonl.zst",
]
ROW = '{"prompt": "Which colour is grass?", "response": "It is green."}\n'


# ---------------------------------------------------------------- a small hub


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub, answered from folders.

    server.folders: (kind, repository, commit) -> folder;  server.asked: the paths asked for.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        kind, repository, request = self.read_path(path.split("/"))
        if repository == "owner/gated":
            return self.answer(403, X_Error_Code="GatedRepo")
        if (kind, repository, COMMIT) not in self.server.folders:
            return self.answer(404, X_Error_Code="RepoNotFound")
        action, revision, file = request
        if revision not in REVISIONS:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        commit = REVISIONS[revision]
        folder = self.server.folders[kind, repository, commit]
        if action == "revision":
            return self.answer_json({"id": repository, "sha": commit, "siblings": []})
        if action == "tree":
            return self.answer_json(self.tree(folder))
        if not (folder / file).is_file():
            return self.answer(404, X_Error_Code="EntryNotFound")
        etag = f'"{self.hash_of(folder / file)}"'
        content = (folder / file).read_bytes()
        return self.answer(200, content, ETag=etag, X_Repo_Commit=commit)

    do_HEAD = do_GET

    def read_path(self, parts):
        """api/models/owner/name/tree/REVISION or owner/name/resolve/REVISION/FILE."""
        kind = "model"
        if parts[0] == "api":
            kind = parts[1].removesuffix("s")
            parts = parts[2:]
        elif parts[0] == "datasets":
            kind = "dataset"
            parts = parts[1:]
        repository = "/".join(parts[:2])
        action, rest = parts[2], "/".join(parts[3:])
        if action != "resolve":
            return kind, repository, (action, rest, "")
        revision, _, file = rest.partition("/")
        return kind, repository, (action, revision, file)

    def tree(self, folder):
        """All files of a folder, as the hub lists them."""
        entries = []
        for file in folder.rglob("*"):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                size = file.stat().st_size
                oid = self.hash_of(file)
                entries.append({"type": "file", "path": name, "size": size, "oid": oid})
        return entries

    def hash_of(self, file):
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def answer_json(self, value):
        body = json.dumps(value).encode()
        self.answer(200, body, Content_Type="application/json")

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        headers.setdefault("Content_Length", len(body))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """A folder to work in, an empty cache, and an address where no hub answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def server(tmp_path, no_hub, monkeypatch):
    """A running hub with a model in two revisions, a gated one, and a data set."""
    new = save_run(tmp_path / "new", tiny_model(0), tiny_tokenizer())
    old = save_run(tmp_path / "old", tiny_model(1), tiny_tokenizer())
    for name in TOO_MUCH:
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_bytes(b"not to be fetched")
    data = tmp_path / "data set"
    for name in DATA:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(f"this is {name}")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.asked = []
    server.folders = {
        ("model", "owner/name", COMMIT): new,
        ("model", "owner/name", OLDER): old,
        ("dataset", "owner/prefs", COMMIT): data,
        ("dataset", "owner/prefs", OLDER): data,
    }
    poll = {"poll_interval": 0.01}  # or every test waits half a second for the end
    threading.Thread(target=server.serve_forever, kwargs=poll, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()


def is_model(name: str, seed: int) -> bool:
    """Whether open_model(name) has the weights of tiny_model(seed)."""
    opened = open_model(name).state_dict()
    for key, tensor in tiny_model(seed).state_dict().items():
        if not torch.equal(opened[key], tensor):
            return False
    return True


# ---------------------------------------------------------------- models


def test_a_model_is_opened_by_its_name_and_only_what_is_needed_is_fetched(server):
    assert is_model("owner/name", seed=0)
    fetched = set()
    for path in server.asked:
        if "/resolve/" in path:
            fetched.add(path.split(COMMIT + "/")[1])
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert fetched == needed


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", OLDER])
def test_the_revision_is_part_of_the_name(server, revision):
    assert is_model(f"owner/name@{revision}", seed=1)
    assert is_model("owner/name", seed=0)


def test_what_was_fetched_once_needs_no_network(server, monkeypatch):
    open_model("owner/name")
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert is_model("owner/name", seed=0)
    assert server.asked == []


def test_a_folder_here_is_meant_before_the_hub(server):
    save_run(Path("owner/name"), tiny_model(3), tiny_tokenizer())
    assert is_model("owner/name", seed=3)
    with pytest.raises(CheckpointError, match="owner/nothing: no such folder"):
        open_model("owner/nothing")
    assert server.asked == [], "a path here must never ask the hub"


def test_a_reward_from_the_hub_is_that_of_the_folder(server):
    folder = server.folders["model", "owner/name", COMMIT]
    status, from_hub, err = command(evaluation.main, "score", "owner/name", stdin=ROW)
    assert status == 0, err
    _, from_folder, _ = command(evaluation.main, "score", folder, stdin=ROW)
    assert json.loads(from_hub)["reward"] == json.loads(from_folder)["reward"]


@pytest.mark.parametrize("name, message", [
    ("owner/nothing", "owner/nothing on the hub: no such model (or a private one: hf auth login)"),
    ("owner/gated", "owner/gated on the hub: its owner asks you to accept terms"),
    ("owner/name@v9", "owner/name on the hub: no revision 'v9'"),
    ("./owner/name", "./owner/name: no such folder"),
    ("a/b/c", "a/b/c: no such folder"),
    ("nothing", "nothing: no such folder"),
    ("here/nothing", "here/nothing: no such folder"),
    ("here/nothing@v1", "here/nothing@v1: no such folder"),
    ("owner/name@../../v1", "owner/name@../../v1: no such folder"),
])
def test_a_model_that_cannot_be_had_is_one_line(server, name, message):
    Path("here").mkdir()
    with pytest.raises(CheckpointError) as caught:
        open_model(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- data


def fetched(server):
    """The files of data sets that were asked for."""
    return sorted({path.split("/resolve/")[1][41:] for path in server.asked if "resolve" in path})


@pytest.mark.parametrize("repository", ["owner/prefs", "owner/prefs@v1", "owner/prefs@refs/pr/1"])
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "dataset_info.json"])
def test_a_file_of_a_data_set_is_fetched_alone(server, repository, name):
    path = hub.data_file(f"hub:{repository}/train/{name}")
    assert path.read_text() == f"this is train/{name}"
    assert fetched(server) == [f"train/{name}"]


def test_of_a_folder_of_a_data_set_the_data_files_are_fetched(server):
    path = hub.data_file("hub:owner/prefs/train")
    names = ["more.json", "pairs.jsonl", "pairs.parquet"]
    assert sorted(file.name for file in path.iterdir()) == names


def test_a_file_with_its_ending_in_capitals_is_fetched_with_its_folder(server):
    hub.data_file("hub:owner/prefs/capitals")
    assert fetched(server) == ["capitals/B.JSONL"]


@pytest.mark.parametrize("name", ["packed", "packed/a.jsonl.zst"])
def test_a_packed_file_is_refused_before_it_is_fetched(server, name):
    with pytest.raises(DataError, match="^hub:owner/prefs/packed/a.jsonl.zst: a packed file; unp"):
        hub.data_file(f"hub:owner/prefs/{name}")
    assert fetched(server) == []


def test_a_star_fetches_the_files_that_it_matches(server):
    path = hub.data_file("hub:owner/prefs/pieces/train-*.csv")
    assert fetched(server) == [f"pieces/train-0000{i}-of-00002.csv" for i in (0, 1)]
    assert len(folders.files_of(str(path), "hub:…/pieces/train-*.csv")) == 2


@pytest.mark.parametrize("address, message", [
    ("owner/prefs/pieces", "several splits; choose: {}/test-0*.csv, {}/train-0*.csv"),
    ("owner/prefs@v1/pieces", "several splits; choose: {}/test-0*.csv, {}/train-0*.csv"),
    ("owner/prefs/pieces/*.csv", "several splits; choose: {}/test-0*.csv, {}/train-0*.csv"),
    ("owner/prefs/subsets", "rows in subfolders; choose: {}/a"),
    ("owner/prefs/holes", "not all pieces are here, missing: train-00001-of-00003.csv; {}"),
])
def test_of_several_splits_nothing_is_fetched(server, address, message):
    with pytest.raises(DataError) as caught:
        hub.data_file(f"hub:{address}")
    folder = f"hub:{address}".removesuffix("/*.csv")
    message = message.replace("csv; {}", "csv; to read only some pieces, name each")
    assert str(caught.value) == f"{folder}: {message.format(folder, folder)}"
    assert fetched(server) == [], "gigabytes would be fetched before the refusal"


def test_the_name_of_a_data_set_lists_what_there_is_to_choose_from(server):
    with pytest.raises(DataError) as caught:
        hub.data_file("hub:owner/prefs")
    choices = "/capitals/B.JSONL (24 bytes), /holes/train-0*.csv (76 bytes), "
    choices += "/packed/a.jsonl.zst (26 bytes), /pieces/test-0*.csv (38 bytes), "
    choices += "/pieces/train-0*.csv (78 bytes), "
    choices += "/subsets/a/x.jsonl (25 bytes), /train/more.json (23 bytes), "
    choices += "/train/pairs.jsonl (25 bytes), /train/pairs.parquet (27 bytes)"
    assert str(caught.value) == f"hub:owner/prefs: which file? Add one of {choices}"
    assert fetched(server) == []


def test_of_many_files_ten_are_listed_and_sizes_can_be_read(server):
    shown = hub.choices({f"{i:02}.jsonl": 10**i for i in range(13)})
    assert shown.startswith("which file? Add one of /00.jsonl (1 bytes), ")
    assert shown.endswith("/08.jsonl (100 MB), /09.jsonl (1 GB) and 3 more")
    assert "no .json" in hub.choices({})


@pytest.mark.parametrize("address, message", [
    ("owner/prefs/nothing.jsonl", ": no such file in that data set"),
    ("owner/prefs/nothing", ": no such file in that data set"),
    ("owner/prefs/x*.jsonl", ": no such file in that data set"),
    ("owner", ": not hub:owner/name/file"),
    ("owner/prefs/../../x.jsonl", ": not hub:owner/name/file"),
    ("owner/prefs//etc/passwd", ": not hub:owner/name/file"),
])
def test_a_file_that_is_not_there_is_one_line(server, address, message):
    with pytest.raises(DataError) as caught:
        hub.data_file(f"hub:{address}")
    assert str(caught.value) == f"hub:{address}{message}"


def test_a_data_set_that_is_not_there_is_one_line(server):
    for address in ("hub:owner/nothing/pairs.jsonl", "hub:owner/nothing", "hub:owner/nothing/x"):
        with pytest.raises(DataError, match="owner/nothing on the hub: no such dataset"):
            hub.data_file(address)


def test_a_folder_fetched_once_needs_no_network(server, monkeypatch):
    hub.data_file("hub:owner/prefs/train")
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path = hub.data_file("hub:owner/prefs/train")
    assert len(list(path.iterdir())) == 3 and server.asked == []


# ---------------------------------------------------------------- no network


@pytest.mark.parametrize("offline", [True, False])  # asked for, or nobody answers
def test_without_a_network_it_is_one_line(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    message = "the hub cannot be reached, and nothing of it is in the cache$"
    with pytest.raises(CheckpointError, match=f"^owner/name on the hub: {message}"):
        open_model("owner/name")
    with pytest.raises(DataError, match=f"^owner/prefs on the hub: {message}"):
        hub.data_file("hub:owner/prefs/pairs.jsonl")
    with pytest.raises(DataError, match="^owner/prefs on the hub: the hub cannot be reached$"):
        hub.data_file("hub:owner/prefs")
