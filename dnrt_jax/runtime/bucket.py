"""Objects in a bucket of Google Cloud Storage: read, written, listed and deleted, each verified.

What is read or written is compared with the CRC32C that the store keeps of every object. gcsfs
finds the credentials and repeats requests that fail for a while; answers that say what is wrong
become a `StorageError` of one line. The object gs://BUCKET/KEY is named by BUCKET and KEY.
"""

import base64
import email.utils
import functools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dnrt_jax.runtime.errors import StorageError

TRIES = 3  # of a transfer that arrives damaged
PIECE = 2**26  # bytes of a download
CONNECT_SECONDS, SILENT_SECONDS = 20, 60  # after which a request is repeated
WRITE_SECONDS, SPEED = 60, 1e6  # and the same of an upload, with the bytes a second it must have


class Info(NamedTuple):
    """An object: its size in bytes, CRC32C (base64, big-endian), generation, seconds since it was
    written by the clock of the store (in a listing: None)."""

    size: int
    crc32c: str
    generation: str
    age: float | None


def read(bucket: str, key: str) -> bytes:
    """The content of an object.

    Raises:
      FileNotFoundError: if there is none.
      StorageError: if the bucket cannot be read, or the content arrives damaged.
    """
    with _answers(bucket, key):
        for _ in range(TRIES):
            headers, data = _store().call("GET", "b/{}/o/{}", bucket, key, alt="media")
            hashes = ",".join(headers.getall("X-Goog-Hash", []))
            if f"crc32c={crc32c(data)}" in hashes.replace(" ", "").split(","):
                return data
    raise StorageError(f"gs://{bucket}/{key}: arrives damaged, {TRIES} times")


def download(bucket: str, key: str, path: Path, info: Info) -> None:
    """Copies an object to a local file, in pieces; goes on with what an interrupted call has left.

    Args:
      info: of the object, from `listing`.

    Raises: as `read`, and OSError if the file cannot be written.
    """
    part = path.with_name(f"{path.name}.{info.generation}.part")
    for _ in range(TRIES):
        with part.open("ab") as file:
            while (start := file.tell()) < info.size:
                piece = f"bytes={start}-{min(start + PIECE, info.size) - 1}"
                with _answers(bucket, key):
                    _, data = _store().call(
                        "GET",
                        "b/{}/o/{}",
                        bucket,
                        key,
                        alt="media",
                        generation=info.generation,
                        headers={"Range": piece},
                    )
                file.write(data)
        if _crc32c_of(part) == info.crc32c:
            part.replace(path)
            return
        part.unlink()
    raise StorageError(f"gs://{bucket}/{key}: arrives damaged, {TRIES} times")


def write(
    bucket: str,
    key: str,
    data: bytes,
    generation: str | None = None,
    seconds: float | None = None,
) -> Info:
    """Writes an object as a whole: readers see the old content or the new one.

    Args:
      generation: that which the object must have, "0" for none; None to write in any case.
      seconds: after which an upload that stalls is repeated; by default as long as its size needs.

    Raises:
      FileExistsError: if it has another generation.
      StorageError: if the bucket cannot be written, or the content arrives damaged.
    """
    condition = {} if generation is None else {"ifGenerationMatch": generation}
    seconds = seconds or WRITE_SECONDS + len(data) / SPEED
    fault = ""
    with _answers(bucket, key, writes=True):
        path = _store().base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
        for _ in range(TRIES):
            try:
                answer = _store().call(
                    "POST",
                    path,
                    bucket,
                    uploadType="media",
                    name=key,
                    data=data,
                    headers={"Content-Type": "application/octet-stream"},
                    json_out=True,
                    timeout=seconds,
                    **condition,
                )
            except TimeoutError:  # the client itself bounds only the silence after an upload
                fault = f"does not arrive in {seconds:.0f} s"
                continue
            if answer["crc32c"] == crc32c(data):
                return _info(answer)
            fault = "arrives damaged"
            if condition:  # ours, though damaged
                condition = {"ifGenerationMatch": answer["generation"]}
    raise StorageError(f"gs://{bucket}/{key}: {fault}, {TRIES} times")


def info(bucket: str, key: str) -> Info:
    """Raises: as `read`."""
    with _answers(bucket, key):
        headers, data = _store().call("GET", "b/{}/o/{}", bucket, key)
        answer = json.loads(data)
    now = email.utils.parsedate_to_datetime(headers["Date"])
    age = (now - datetime.fromisoformat(answer["updated"])).total_seconds()
    return _info(answer)._replace(age=max(age, 0.0))  # the clock is told in whole seconds


def listing(bucket: str, prefix: str, *, at_most: int | None = None) -> Iterator[tuple[str, Info]]:
    """Yields (key, info) of the objects below the folder `prefix`, "" or with a slash at its end.

    Raises:
      StorageError: if there is no such bucket, or it cannot be read.
    """
    page = {}
    while page is not None:
        with _answers(bucket):
            answer = _store().call(
                "GET", "b/{}/o", bucket, prefix=prefix, maxResults=at_most, json_out=True, **page
            )
        yield from ((item["name"], _info(item)) for item in answer.get("items", []))
        token = answer.get("nextPageToken")
        page = {"pageToken": token} if token and not at_most else None


def delete(bucket: str, key: str, generation: str | None = None) -> None:
    """Deletes an object if it exists, and has that `generation` if one is given."""
    with _answers(bucket, key), suppress(FileNotFoundError, FileExistsError):
        _store().call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=generation)


def crc32c(data: bytes) -> str:
    """As the store gives it: base64 of four bytes, big-endian."""
    import google_crc32c  # pyright: ignore[reportMissingImports]

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def _crc32c_of(path: Path) -> str:
    import google_crc32c  # pyright: ignore[reportMissingImports]

    with path.open("rb") as file:
        checksum = google_crc32c.Checksum()
        while data := file.read(2**20):
            checksum.update(data)
    return base64.b64encode(checksum.digest()).decode()


def _info(answer: dict[str, Any]) -> Info:
    return Info(int(answer["size"]), answer["crc32c"], answer["generation"], None)


def _store() -> Any:
    return _store_of(os.getpid())


@functools.cache
def _store_of(process: int) -> Any:
    """The client; one a process, as its connections do not survive a fork."""
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its errors reach the user as ours
    from aiohttp import ClientTimeout  # pyright: ignore[reportMissingImports]
    from gcsfs.core import GCSFileSystem  # pyright: ignore[reportMissingImports]

    patience = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    return GCSFileSystem(requests_timeout=patience, use_listings_cache=False)


@contextmanager
def _answers(bucket: str, key: str = "", *, writes: bool = False) -> Iterator[None]:
    """Translates what the client raises. Who `writes` an object finds no bucket, not no object."""
    where = f"gs://{bucket}/{key}"
    try:
        yield
    except ImportError as error:
        raise StorageError(
            f"{where}: needs {error.name} to be reached; run: pip install 'dnrt_jax[gcs]'"
        ) from None
    except FileExistsError:
        raise
    except FileNotFoundError:
        if key and not writes:
            raise FileNotFoundError(2, "no such object", where) from None
        raise StorageError(
            f"gs://{bucket}: no such bucket; make it: gcloud storage buckets create gs://{bucket}"
        ) from None
    except Exception as error:
        raise _explained(error, where, bucket) from None


def _explained(error: Exception, where: str, bucket: str) -> Exception:
    import aiohttp  # pyright: ignore[reportMissingImports]
    import requests
    from gcsfs.retry import HttpError  # pyright: ignore[reportMissingImports]
    from google.auth.exceptions import GoogleAuthError  # pyright: ignore[reportMissingImports]

    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, GoogleAuthError) or getattr(error, "code", None) == 401:
        return StorageError(
            f"{where}: no credentials ({said}); run: gcloud auth application-default login"
        )
    if isinstance(error, OSError) and said.startswith("Forbidden"):
        return StorageError(
            f"{where}: no permission; the account needs the role Storage Object User on "
            f"gs://{bucket}"
        )
    others = HttpError, aiohttp.ClientError, requests.RequestException, OSError, ValueError
    if isinstance(error, others):
        return StorageError(f"{where}: the bucket does not answer as it should ({said})")
    return error
