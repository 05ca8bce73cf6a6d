"""Weights of the Hugging Face hub, by name: hf:OWNER/NAME or hf:OWNER/NAME@REVISION.

REVISION is a branch, a tag or a commit. Only model.safetensors and the config.json beside it are
read. This needs `pip install 'dnrt_jax[hub]'`; the hub's own cache, token and offline mode apply
($HF_HOME, $HF_TOKEN, $HF_HUB_OFFLINE).
"""

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from dnrt_jax.runtime.errors import WeightsError
from dnrt_jax.runtime.weight_files import CONFIG

PREFIX = "hf:"
WEIGHTS = "model.safetensors"
TIMEOUT = 5  # seconds


def is_name(source: object) -> bool:
    """Whether `source` is the name of a repository of the hub, not a path."""
    return str(source).startswith(PREFIX)


def fetch(name: str) -> Path:
    """Downloads the weights `name`, unless the hub's cache has them, and checks their checksum.

    Returns:
      The path of the weights in the hub's cache; its folder has the name of the commit.

    Raises:
      WeightsError: if there is no network, no such repository or revision, no permission, or the
        repository has no .safetensors file.
    """
    repo, revision = _parse(name)
    with _one_line(name):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        offline = _is_in_cache_only(repo, revision)
        path = Path(hf_hub_download(repo, WEIGHTS, revision=revision, local_files_only=offline))
        commit = path.parent.name
        try:
            hf_hub_download(repo, CONFIG, revision=commit, local_files_only=offline)
        except LocalEntryNotFoundError:  # an EntryNotFoundError, too
            if not offline:
                raise WeightsError(f"{name}: the hub does not send its {CONFIG}") from None
        except EntryNotFoundError:
            pass  # the repository has none
    _check_sum(path, name)
    return path


def pin(name: str, known: str = "") -> str:
    """`name` with the commit as its revision; a path is returned unchanged.

    Args:
      known: a pinned name. If it is of the same repository, and `name` has no commit of its own,
        it is the result, and the hub is not asked.

    Raises:
      WeightsError: as `fetch`.
    """
    if not is_name(name):
        return name
    repo, revision = _parse(name)
    if _is_commit(revision):
        return name
    if is_name(known) and _parse(known)[0] == repo and _is_commit(_parse(known)[1]):
        return known
    return f"{PREFIX}{repo}@{fetch(name).parent.name}"


def push(name: str, folder: Path) -> str:
    """Uploads the files of `folder` to the repository `name`, created if needed: the commit's URL.

    Raises:
      WeightsError: if there is no network or no permission.
    """
    repo, revision = _parse(name)
    with _one_line(name):
        from huggingface_hub import HfApi

        _find_host()
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        message = "Upload with dnrt_jax"
        return api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message
        ).commit_url


def _parse(name: str) -> tuple[str, str | None]:
    """(OWNER/NAME, revision or None)"""
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not found:
        raise WeightsError(f"{name}: write it as hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return found[1], found[2]


def _is_commit(revision: str | None) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{40}", revision or ""))


def _is_in_cache_only(repo: str, revision: str | None) -> bool:
    """Whether to read the cache without asking the hub, as that is not allowed, needed or possible.

    Raises:
      HTTPError: if the hub cannot be reached, refuses, or does not have it, and the cache neither.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    cached = isinstance(try_to_load_from_cache(repo, WEIGHTS, revision=revision), str)
    # Not None also where the cache knows that there is no such file.
    both = cached and try_to_load_from_cache(repo, CONFIG, revision=revision) is not None
    if constants.HF_HUB_OFFLINE or (both and _is_commit(revision)):
        return True
    try:  # hf_hub_download would try for a minute to reach the hub
        _find_host()
        get_hf_file_metadata(hf_hub_url(repo, WEIGHTS, revision=revision), timeout=TIMEOUT)
    except HfHubHTTPError:
        raise
    except HTTPError:
        if cached:
            return True
        raise
    return False


def _find_host() -> None:
    """Raises HTTPError unless the hub's address is found in time; the look-up has no timeout."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    host, found = urlsplit(constants.ENDPOINT).hostname, []

    def ask() -> None:
        with suppress(OSError):
            found.append(socket.getaddrinfo(host, None))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not found:
        raise HTTPError(f"the name {host} is not resolved")


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turns the errors of huggingface_hub into a WeightsError."""
    try:
        from huggingface_hub import constants, errors
    except ImportError:
        raise WeightsError(f"{name}: needs pip install 'dnrt_jax[hub]'") from None
    login = "log in with `hf auth login`"
    try:
        yield
    except errors.HFValidationError as error:
        raise WeightsError(f"{name}: {error}") from None
    except errors.GatedRepoError:
        raise WeightsError(
            f"{name}: gated; accept its conditions on {constants.ENDPOINT}, then {login}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(f"{name}: no such repository; if it is private, {login}") from None
    except errors.RevisionNotFoundError:
        raise WeightsError(f"{name}: the repository has no such revision") from None
    except errors.LocalEntryNotFoundError:
        raise WeightsError(
            f"{name}: not in the hub's cache, and HF_HUB_OFFLINE forbids to download it"
        ) from None
    except errors.EntryNotFoundError:
        raise WeightsError(f"{name}: {_content(name)}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = f"; {login}" if status in (401, 403) else ""
        raise WeightsError(f"{name}: {constants.ENDPOINT} answers {status}{hint}") from None
    except errors.HTTPError as error:
        raise WeightsError(
            f"{name}: {constants.ENDPOINT} cannot be reached ({error}), and the weights are not in "
            "the hub's cache"
        ) from None


def _content(name: str) -> str:
    """What a repository without WEIGHTS has instead."""
    from huggingface_hub import HfApi

    repo, revision = _parse(name)
    files = HfApi().list_repo_files(repo, revision=revision)
    if pickles := [file for file in files if file.endswith((".bin", ".pth", ".pt", ".ckpt"))]:
        return (
            f"no {WEIGHTS} in it, only a pickle ({pickles[0]}), which may run code when it is "
            "read; take a repository with .safetensors"
        )
    return f"no {WEIGHTS} in it, only {', '.join(files)}"


def _check_sum(path: Path, name: str) -> None:
    """Compares a file of the cache with its checksum: the name of the file that it is a link to.

    That is the SHA-256 of a large file, and the name that git gives to a small one.

    Raises:
      WeightsError: if the content differs.
    """
    if not path.is_symlink():
        return
    expected, content = path.readlink().name, path.read_bytes()
    if len(expected) == 64:
        actual = hashlib.sha256(content).hexdigest()
    else:
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if actual != expected:
        raise WeightsError(f"{name}: its checksum differs; delete {path.resolve()} and try again")
