"""hub.py: models and data by their names on the Hugging Face hub.

    python train_rm.py --model owner/name --data hub:owner/name/train.jsonl
    python eval.py score owner/name@v1
    python train_rm.py --data hub:owner/name                   lists what there is to choose from

    owner/name                  a model: the newest version of its main branch
    owner/name@revision         a branch, a tag or a commit of it. A commit never changes, so
                                only with a commit do two runs read the same for certain.
    hub:owner/name/file         a file of a data set, or a folder of files as in extras/folders.py
    hub:owner/name/train-*      all files that the name matches
    hub:owner/name@revision/file
    hub:owner/name              an error that names the files: a data set has no default one

A name that is a folder here means that folder, and the hub is not asked. Fetched files stay in
huggingface_hub's cache, ~/.cache/huggingface/hub: the second use needs no network. Private
repositories need `hf auth login` first.

Of a model only safetensors, config and tokenizer are fetched: never pickled weights, never code.

tests/extras/test_hub.py runs against a small hub of its own, without a network.
"""
import contextlib
import fnmatch
import glob
import re
from pathlib import Path

from huggingface_hub import HfApi, errors, snapshot_download
from huggingface_hub.hf_api import RepoFile

from model import CheckpointError

# No pickled weights, no code, and no second copy of the weights for other programs.
MODEL_FILES = [
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "value_head.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]

WORD = r"[\w-][\w.-]*"
MODEL_NAME = re.compile(rf"({WORD}/{WORD})(?:@({WORD}(?:/{WORD})*))?")  # refs/pr/1 has slashes
DATA_ADDRESS = re.compile(rf"hub:({WORD}/{WORD})(?:@(refs/\w+/{WORD}|{WORD}))?(?:/([^/].*)?)?")


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

    Raises: DataError on an address of another form, on one without a file, or where the hub does
            not give the file.
    """
    from data import DataError  # here, because models are opened without data.py too
    from extras import folders

    match = DATA_ADDRESS.fullmatch(address)
    if not match or ".." in (match[3] or "").split("/"):
        raise DataError(f"{address}: not hub:owner/name/file")
    repository, revision, file = match.groups()
    file = (file or "").rstrip("/")
    try:
        if not file:
            sizes = sizes_of_data(repository, revision)
            raise DataError(f"{address}: {choices(sizes)}")
        files = files_to_fetch(repository, revision, file)
        ignore = None  # a file that is named is wanted, whatever its name
        if len(files) > 1:
            ignore = [f"*/{name}" for name in folders.METADATA]
        folder = fetch("dataset", repository, revision, files, ignore)
    except HubError as e:
        raise DataError(str(e)) from None
    if not (folder / file).exists() and not any(folder.glob(file)):
        raise DataError(f"{address}: no such file in that data set")
    return folder / file


def files_to_fetch(repository: str, revision: str | None, file: str) -> list[str]:
    """The patterns of a file, of the data files of a folder, or of what train-* matches.

    Raises: DataError where they do not belong together: before anything large is fetched.
    """
    from extras import folders

    address = f"hub:{repository}@{revision}" if revision else f"hub:{repository}"
    if file.lower().endswith(folders.ENDINGS + folders.PACKED) and "*" not in file:
        folders.refuse_packed([file], address)
        return [file]
    folder, _, last = file.rpartition("/")
    fetched = [file]
    if "*" not in last:
        folder, last = file, "*"
        fetched = [file, *(f"{file}/*{ending}" for ending in folders.ENDINGS)]
    try:
        names = list(sizes_of_data(repository, revision))
    except HubError:  # no network: what is in the cache was checked when it was fetched
        return fetched
    start = f"{folder}/" if folder else ""
    inside = []
    for name in names:
        below = name.removeprefix(start)
        if name.startswith(start) and fnmatch.fnmatchcase(below.split("/")[0], last):
            inside.append(below)
    if inside:
        folders.refuse_mixture(inside, f"{address}/{folder}".rstrip("/"))
        fetched += [glob.escape(start + below) for below in inside]  # B.JSONL too
    return fetched


def sizes_of_data(repository: str, revision: str | None) -> dict[str, int]:
    """The data files of a data set, sorted, and their bytes.  Raises: HubError in one line."""
    from extras import folders

    with reasons("dataset", repository, revision):
        # Asked first, because without a network the list itself is tried again for 20 seconds.
        commit = HfApi().dataset_info(repository, revision=revision or "main").sha
        tree = HfApi().list_repo_tree(
            repository, repo_type="dataset", revision=commit, recursive=True
        )
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
    sizes = {}
    for entry in sorted(files, key=lambda entry: entry.path):
        if folders.is_data_file(entry.path.rpartition("/")[2]):
            sizes[entry.path] = entry.size
    return sizes


def choices(sizes: dict[str, int]) -> str:
    """What a user may add to the name of a data set, as one line."""
    from extras import folders

    if not sizes:
        return f"{folders.NO_FILES} in that data set"
    shown = []
    for whole, names in folders.in_one_piece(list(sizes)).items():
        size = readable_size(sum(sizes[name] for name in names))
        shown.append(f"/{whole} ({size})")
    return f"which file? Add one of {folders.shortened(shown)}"


def readable_size(size: float) -> str:
    """1234567 -> "1.2 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            break
        size /= 1000
    else:
        unit = "GB"
    return f"{size:.3g} {unit}"


def advice(path: str) -> str:
    """What to say of a missing file that looks like the name of a data set."""
    is_name = re.fullmatch(rf"{WORD}/{WORD}", path) and not Path(path.split("/")[0]).exists()
    return f"; a data set of the Hugging Face hub is hub:{path}" if is_name else ""


def fetch(kind, repository, revision, files: list[str], ignore: list[str] | None = None) -> Path:
    """A folder with these files of a "model" or "dataset". Only missing ones are fetched.

    Raises: HubError in one line.
    """
    with reasons(kind, repository, revision):
        folder = snapshot_download(
            repository,
            repo_type=kind,
            revision=revision,
            allow_patterns=files,
            ignore_patterns=ignore,
        )
    return Path(folder)


@contextlib.contextmanager
def reasons(kind: str, repository: str, revision: str | None):
    """Any failure of huggingface_hub inside -> HubError, which says in one line what to do."""
    try:
        yield
        return
    except errors.GatedRepoError:
        why = "its owner asks you to accept terms on its page, and then to log in: hf auth login"
    except errors.RepositoryNotFoundError:
        why = f"no such {kind} (or a private one: hf auth login)"
    except errors.RevisionNotFoundError:
        why = f"no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        why = "the hub cannot be reached, and nothing of it is in the cache"
    except Exception as e:  # a network has many other ways to fail
        why = (str(e) or repr(e)).splitlines()[0]
        if "Connect" in type(e).__name__ or isinstance(e, errors.OfflineModeIsEnabled):
            why = "the hub cannot be reached"
    raise HubError(f"{repository} on the hub: {why}")
