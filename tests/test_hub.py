"""Models and data by their names on the Hugging Face hub: only what is needed is fetched, and every failure is one line.

The hub of these tests is a few lines of http.server: nothing here needs a network.
"""
import hashlib
import http.server
import io
import json
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import save_run, tiny_model, tiny_tokenizer
from huggingface_hub import constants

import eval as evaluation
import train_rm
from data import toy_preferences
from model import RewardModel

COMMIT, OLDER = "a" * 40, "b" * 40


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub, answered from folders: files[kind, repo, commit] -> folder."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        kind, repo, rest = self.place(path.split("/"))
        if repo == "owner/gated":
            return self.answer(403, X_Error_Code="GatedRepo")
        revisions = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
        if (kind, repo, COMMIT) not in self.server.files:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if rest[0] in ("revision", "tree", "resolve") and rest[1] not in revisions:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        commit = revisions[rest[1]]
        folder = self.server.files[kind, repo, commit]
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        if rest[0] == "revision":
            siblings = [{"rfilename": name} for name in names]
            return self.answer(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode(), Content_Type="application/json")
        if rest[0] == "tree":
            tree = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": self.etag(folder / n)} for n in names]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        file = "/".join(rest[2:])
        if file not in names:
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.answer(200, (folder / file).read_bytes(), ETag=f'"{self.etag(folder / file)}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    @staticmethod
    def etag(file):
        return hashlib.sha1(file.read_bytes()).hexdigest()

    @staticmethod
    def place(parts):
        if parts[0] == "api":
            return parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:] or ["revision", "main"]
        if parts[0] == "datasets":
            return "dataset", "/".join(parts[1:3]), parts[3:]
        return "model", "/".join(parts[:2]), parts[2:]

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, own_cache, monkeypatch):
    """A running hub with a model in two revisions, a gated one, and a data set."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    folders = [save_run(tmp_path / name, tiny_model(seed), tiny_tokenizer()) for seed, name in enumerate(("new", "old"))]
    for name in ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "onnx/model.onnx", "sub/model.safetensors"):
        (folders[0] / name).parent.mkdir(exist_ok=True)
        (folders[0] / name).write_bytes(b"not to be fetched")
    pairs = tmp_path / "data set" / "train" / "pairs.jsonl"
    pairs.parent.mkdir(parents=True)
    pairs.write_text("".join(json.dumps(row) + "\n" for row in toy_preferences(200, 0)))
    (pairs.parent / "other.parquet").write_bytes(b"PAR1")
    server.asked, server.files = [], {
        ("model", "owner/name", COMMIT): folders[0], ("model", "owner/name", OLDER): folders[1],
        ("dataset", "owner/prefs", COMMIT): tmp_path / "data set", ("dataset", "owner/prefs", OLDER): tmp_path / "data set",
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A folder to work in, an empty cache, and no hub yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def python(capfd, monkeypatch):
    """Run a script's main: status, stdout, stderr."""

    def run(file, *args):
        monkeypatch.setattr(sys, "stdin", io.StringIO(ROW))
        capfd.readouterr()
        status = {"eval.py": evaluation, "train_rm.py": train_rm}[file].main([str(a) for a in args])
        return status, *capfd.readouterr()

    return run


ROW = '{"prompt": "Which colour is grass?", "response": "It is green."}\n'


def reward_of(folder):
    return evaluation.score(RewardModel.from_pretrained(folder), [json.loads(ROW)])[0]


def test_a_model_of_the_hub_is_scored_with_and_only_what_is_needed_is_fetched(hub, python, monkeypatch):
    status, out, err = python("eval.py", "score", "owner/name")
    assert status == 0, err
    assert json.loads(out)["reward"] == pytest.approx(reward_of(hub.files["model", "owner/name", COMMIT]), abs=1e-6)
    fetched = {Path(path.split("/resolve/")[1]).name for path in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert not any("sub/" in path for path in hub.asked)

    status, out, err = python("eval.py", "score", "owner/name", "--revision", "v1")
    assert json.loads(out)["reward"] == pytest.approx(reward_of(hub.files["model", "owner/name", OLDER]), abs=1e-6)

    # What was fetched once serves without a network.
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, out, err = python("eval.py", "score", "owner/name")
    assert status == 0 and json.loads(out)["reward"] == pytest.approx(reward_of(hub.files["model", "owner/name", COMMIT]), abs=1e-6)
    assert hub.asked == []


def test_training_takes_model_and_data_from_the_hub(hub, python):
    args = ["--model", "owner/name", "--revision", "v1", "--data", "hub:owner/prefs/train/pairs.jsonl", "--batch-size", 8, "--max-steps", 1]
    status, out, err = python("train_rm.py", *args, "--output", "run")
    assert status == 0, err
    assert "value head kept" in out and "pairs read" in out
    options = json.loads(Path("run/options.json").read_text())
    assert (options["model"], options["revision"]) == ("owner/name", "v1")
    assert sum(a["read"] for a in options["audit"].values()) == 200


@pytest.mark.parametrize("arguments, message", [
    (["eval.py", "score", "owner/nothing"], "owner/nothing on the hub: no such model (or a private one"),
    (["eval.py", "score", "owner/gated"], "owner/gated on the hub: its owner asks you to accept terms"),
    (["eval.py", "score", "owner/name", "--revision", "v9"], "owner/name on the hub: no revision 'v9'"),
    (["eval.py", "score", "./owner/name"], "./owner/name: no such folder"),
    (["eval.py", "score", "a/b/c"], "a/b/c: no such folder"),
    (["eval.py", "score", "here/nothing"], "here/nothing: no such folder"),
    (["eval.py", "score", "here", "--revision", "v1"], "--revision v1: here is a local folder"),
    (["train_rm.py", "--data", "hub:owner/prefs/nothing.jsonl"], "hub:owner/prefs/nothing.jsonl: no such file in that data set"),
    (["train_rm.py", "--data", "hub:owner/prefs/train/other.parquet"], "parquet is not read"),
    (["train_rm.py", "--data", "hub:owner/nothing/pairs.jsonl"], "owner/nothing on the hub: no such dataset"),
    (["train_rm.py", "--data", "hub:owner/prefs"], "hub:owner/prefs: not hub:owner/name/file"),
    (["train_rm.py", "--data", "hub:owner/prefs/../../x.jsonl"], "not hub:owner/name/file"),
])
def test_what_cannot_be_had_is_one_line_and_exit_status_2(hub, python, arguments, message):
    Path("here").mkdir()
    status, _, err = python(*arguments)
    assert status == 2 and message in err and "Traceback" not in err
    assert len([line for line in err.splitlines() if line and "it/s" not in line and "Fetching" not in line and "No files matched" not in line]) == 1, err


@pytest.mark.parametrize("offline", [True, False])  # asked for, or nobody answers
@pytest.mark.parametrize("arguments", [["eval.py", "score", "owner/name"], ["train_rm.py", "--data", "hub:owner/prefs/pairs.jsonl"]])
def test_without_a_network_it_is_one_line(python, monkeypatch, offline, arguments):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    status, _, err = python(*arguments)
    assert status == 2 and err.count("\n") == 1 and "the hub cannot be reached, and nothing of it is in the cache" in err


def test_local_paths_never_touch_the_network(hub, python):
    save_run(Path("owner/name"), tiny_model(3), tiny_tokenizer())
    status, out, err = python("eval.py", "score", "owner/name")
    assert status == 0 and json.loads(out)["reward"] == pytest.approx(reward_of("owner/name"), abs=1e-6)
    assert python("eval.py", "score", "owner/nothing")[0] == 2
    assert hub.asked == []
