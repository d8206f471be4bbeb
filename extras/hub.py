"""hub.py: models and data by their names on the Hugging Face hub.

    python train_rm.py --model owner/name --data hub:owner/name/train.jsonl
    python eval.py score owner/name@v1

    owner/name                  a model: the newest version of its main branch
    owner/name@revision         a branch, a tag or a commit of it. A commit never changes, so
                                only with a commit do two runs read the same for certain.
    hub:owner/name/file         a file of a data set, or a folder of .json and .jsonl files
    hub:owner/name@revision/file

A name that is a folder here means that folder, and the hub is not asked. Fetched files stay in
huggingface_hub's cache, ~/.cache/huggingface/hub: the second use needs no network. Private
repositories need `hf auth login` first.

Of a model only safetensors, config and tokenizer are fetched: never pickled weights, never code.

tests/extras/test_hub.py runs against a small hub of its own, without a network.
"""
import re
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from model import CheckpointError

# No pickled weights, no code, and no second copy of the weights for other programs.
MODEL_FILES = [
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "value_head.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]

WORD = r"[\w-][\w.-]*"
MODEL_NAME = re.compile(rf"({WORD}/{WORD})(?:@({WORD}(?:/{WORD})*))?")  # refs/pr/1 has slashes
DATA_ADDRESS = re.compile(rf"hub:({WORD}/{WORD})(?:@({WORD}))?/([^/].*)")


class HubError(ValueError):
    """Something cannot be had from the hub. One line says why."""


def model_folder(name: str) -> Path:
    """owner/name or owner/name@revision -> the folder in the cache that holds the model.

    Raises: CheckpointError where the name is a path, or the hub does not give the model.
    """
    match = MODEL_NAME.fullmatch(name)
    # "runs/frist" is a mistyped path where there is a folder runs/.
    if not match or Path(name.split("/")[0]).exists():
        raise CheckpointError(f"{name}: no such folder")
    repository, revision = match.groups()
    try:
        return fetch("model", repository, revision, MODEL_FILES)
    except HubError as e:
        raise CheckpointError(str(e)) from None


def data_file(address: str) -> Path:
    """hub:owner/name/file -> the path of that file, or folder, in the cache.

    Raises: DataError on an address of another form, or where the hub does not give the file.
    """
    from data import DataError  # here, because models are opened without data.py too

    match = DATA_ADDRESS.fullmatch(address)
    if not match or ".." in match[3].split("/"):
        raise DataError(f"{address}: not hub:owner/name/file")
    repository, revision, file = match.groups()
    files_of_a_folder = file.rstrip("/") + "/*.json*"
    try:
        folder = fetch("dataset", repository, revision, [file, files_of_a_folder])
    except HubError as e:
        raise DataError(str(e)) from None
    if not (folder / file).exists():
        raise DataError(f"{address}: no such file in that data set")
    return folder / file


def fetch(kind: str, repository: str, revision: str | None, files: list[str]) -> Path:
    """A folder with these files of a "model" or "dataset". Only missing ones are fetched.

    Raises: HubError in one line.
    """
    try:
        folder = snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=files
        )
        return Path(folder)
    except errors.GatedRepoError:
        why = "its owner asks you to accept terms on its page, and then to log in: hf auth login"
    except errors.RepositoryNotFoundError:
        why = f"no such {kind} (or a private one: hf auth login)"
    except errors.RevisionNotFoundError:
        why = f"no revision {revision!r}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "the hub cannot be reached, and nothing of it is in the cache"
    except Exception as e:  # a network has many other ways to fail
        why = (str(e) or repr(e)).splitlines()[0]
    raise HubError(f"{repository} on the hub: {why}")
