"""A run folder on remote storage: any address that fsspec understands (`s3://bucket/runs/mine`, `gs://`, `hdfs://`, ...).

A folder that contains the file `.storage` is a working copy, on this machine, of the address in that file. The rest of
the program works on paths: a file that is published at a path of a working copy is put into the storage first, a file
that is to be read is fetched if the storage has another version, and a file that is removed is removed from the storage
as well. In any other folder these functions do what the file system does, so no caller asks where a run lies.

The storage is authoritative: a file of the working copy that the storage does not have is taken for removed. On an
object store a file is put whole or not at all; on a file system it is put under a temporary name and then renamed.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sppo.reading import parse

_MARK, _VERSIONS, _LOCK = ".storage", ".versions", ".lock.json"
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"}
"""Protocols whose put is atomic. On all others the file is put under a temporary name, since a rename is atomic there."""
_RENEWAL_SECONDS = 10.0
_SILENCE_SECONDS = 60.0
"""The lock of a run that is at work on another machine changes within this time."""
_LOCKS: dict[Path, "_Lock"] = {}
"""The locks that this process holds, by the folder of the working copy."""


class StorageError(ValueError):
    """Storage that cannot be used; the message gives the reason and says what to do."""


class StorageLocked(StorageError):
    """Another process is at work in the run."""


def is_address(path: str | Path) -> bool:
    """Whether this is an address instead of a path.

    `Path` removes one of an address's slashes. With one slash, `ab:/run` is a path if fsspec knows no protocol `ab` and
    there is a folder `ab:` here.
    """
    match = re.match(r"([a-z][a-z0-9+.-]+):/(/?)", str(path))
    if match is None or match[2]:
        return match is not None
    from fsspec import available_protocols

    return match[1] in available_protocols() or not Path(f"{match[1]}:").is_dir()


def located(path: Path) -> Path:
    """The path itself, or for an address the working copy on this machine, brought up to date with the storage.

    Working copies lie in `$SPPO_WORKING_COPIES`, by default `~/.cache/sppo/runs`.

    Raises:
        StorageError: the storage cannot be used.
    """
    if not is_address(path):
        return path
    address = re.sub(r"^([a-z0-9+.-]+):/+", lambda match: f"{match[1]}://", str(path)).rstrip("/")
    if address.startswith(("file://", "local://")):
        address = address.replace("://", ":///", 1)
    home = os.environ.get("SPPO_WORKING_COPIES") or "~/.cache/sppo/runs"
    name = f"{address.rsplit('/', 1)[-1]}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    copy = (Path(home).expanduser() / name).resolve()
    adopt(copy, address)
    fetch(copy)
    return copy


def adopt(folder: Path, address: str) -> None:
    """Make a folder on this machine a working copy of an address."""
    _connect(address)
    folder.mkdir(parents=True, exist_ok=True)
    if address_of(folder) != address:
        temporary = folder / f"{_MARK}.{os.getpid()}"
        temporary.write_text(address, encoding="utf-8")
        os.replace(temporary, folder / _MARK)


def address_of(folder: Path) -> str | None:
    """The address that the folder is a working copy of; None if it is not a working copy."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return (folder / _MARK).read_text(encoding="utf-8")
    return None


def is_within_a_copy(path: Path) -> bool:
    """Whether a path lies in a working copy."""
    return _copy_of(path) is not None


def shown(path: Path) -> str:
    """A path as the user knows it, which within a working copy is its address."""
    copy = _copy_of(path)
    return str(path) if copy is None else copy.remote(path)


def fetch(path: Path) -> None:
    """Bring a file or a folder of a working copy up to date with the storage, removing files that are not there.

    Files that were never published, such as those of a stage in progress, stay.

    Raises:
        StorageError: the storage does not answer.
    """
    copy = _copy_of(path)
    if copy is None:
        return
    versions = copy.versions(path)
    for file in copy.known(path):
        if file not in versions:
            copy.forget(file)
    for file, version in versions.items():
        if not copy.has(file, version):
            copy.get(file, version)


def publish(path: Path, content: Path | None = None) -> None:
    """Put a file, or those files of a folder that the storage does not have, into the storage.

    Args:
        path: the path under which the file is published.
        content: the file with the content, which the caller will rename to `path`; None: `path` itself.

    Raises:
        StorageError: the file could not be put; what was there before is unchanged.
    """
    copy = _copy_of(path)
    if copy is None:
        return
    if not path.is_dir() or content is not None:
        copy.put(path, content or path)
        return
    versions = copy.versions(path)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        if not copy.has(file, versions.get(file)):
            copy.put(file, file)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists; within a working copy, remove it from the storage as well.

    Raises:
        StorageError: the storage does not answer.
    """
    copy = _copy_of(path)
    if copy is not None:
        for file in copy.versions(path):
            copy.delete(file)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep processes of other machines out of a working copy's address.

    A lock that is not renewed for a minute was left by a process that was killed, and is taken over. A lock that this
    working copy left is taken over at once, since the lock on its folder keeps processes of this machine out.

    Raises:
        StorageLocked: another process is at work at the address.
        StorageError: the storage does not answer.
    """
    copy = _copy_of(folder)
    if copy is None:
        yield
        return
    token = f"{copy.name}:{secrets.token_hex(8)}"
    copy.take_lock(token)
    lock = _LOCKS[copy.folder] = _Lock(token, _now())
    ended = threading.Event()
    renewal = threading.Thread(target=copy.renew_lock, args=(lock, ended), daemon=True)
    renewal.start()
    try:
        copy.sweep()
        fetch(folder)
        yield
    finally:
        ended.set()
        renewal.join()
        del _LOCKS[copy.folder]
        copy.release_lock(token)


def arrow_location(path: Path) -> tuple[str, Any] | None:
    """The path and the file system by which pyarrow reaches a file of a working copy; None for any other path."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    copy = _copy_of(path)
    if copy is None:
        return None
    return f"{copy.root}/{copy.relative(path)}", PyFileSystem(FSSpecHandler(copy.storage))


@dataclass
class _Lock:
    """A lock that this process holds: its owner's name in the storage, and when it was renewed last."""

    token: str
    renewed: float
    renewals: int = 0


def _now() -> float:
    """Seconds that go on while the machine sleeps, and that no change of the date moves."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class _Copy:
    """A working copy: its folder on this machine, and the address in the storage that it follows."""

    folder: Path
    address: str

    @property
    def storage(self) -> Any:
        return _connect(self.address)[0]

    @property
    def root(self) -> str:
        return _connect(self.address)[1]

    @property
    def name(self) -> str:
        """A name that no other working copy has, on this machine or another."""
        file = self.folder / _VERSIONS / ".name"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            file.write_text(secrets.token_hex(8), encoding="utf-8")
        return file.read_text(encoding="utf-8")

    def relative(self, path: Path) -> str:
        return path.absolute().relative_to(self.folder).as_posix()

    def remote(self, path: Path) -> str:
        return f"{self.address}/{self.relative(path)}".removesuffix("/.")

    def versions(self, path: Path) -> dict[Path, str]:
        """The files that the storage has at a path or below it, each with a text that tells its versions apart."""
        at = f"{self.root}/{self.relative(path)}".removesuffix("/.")
        with self._asked(path):
            self.storage.invalidate_cache()
            try:
                listing = {
                    name: info or self.storage.info(name)
                    for name, info in self.storage.find(at, detail=True).items()
                }
            except FileNotFoundError:
                return {}
        paths = {
            self.folder / name.removeprefix(self.root).lstrip("/"): info for name, info in listing.items()
        }
        own = (_MARK, _LOCK)
        return {
            file: _version(info)
            for file, info in paths.items()
            if file.name not in own and not file.name.endswith(".tmp")
        }

    def known(self, path: Path) -> list[Path]:
        """The files at a path or below it that have been published or fetched before."""
        notes = self._note(path)
        files = [notes, *notes.rglob("*")] if notes.exists() else []
        return [
            self.folder / file.relative_to(self.folder / _VERSIONS)
            for file in files
            if file.is_file() and file.name != ".name"
        ]

    def has(self, file: Path, version: str | None) -> bool:
        """Whether the file on this machine is unchanged since this version of it was published or fetched."""
        try:
            noted = parse(self._note(file).read_bytes())
            return bool(noted == [version, *_stamp(file)])
        except (OSError, ValueError):
            return False

    def get(self, file: Path, version: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            before, now = "", version
            while now != before:  # the file was replaced while it was read
                before = now
                with self._asked(file):
                    self.storage.get_file(self._at(file), str(temporary))
                    self.storage.invalidate_cache()
                    now = _version(self.storage.info(self._at(file)))
            self._write_note(file, now, temporary)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, file: Path, content: Path) -> None:
        at = self._at(file)
        lock = _LOCKS.get(self.folder)
        if lock is not None and _now() - lock.renewed > _SILENCE_SECONDS / 2:
            self.keep_lock(lock)
        with self._asked(file):
            self.storage.invalidate_cache()
            if _protocol(self.storage) in _OBJECT_STORES:
                self.storage.put_file(str(content), at)
            else:
                parent, name = at.rsplit("/", 1)
                temporary = f"{parent}/.{name}.{secrets.token_hex(4)}.tmp"
                self.storage.makedirs(parent, exist_ok=True)
                self.storage.put_file(str(content), temporary)
                self._rename(temporary, at)
            info = self.storage.info(at)
        if info["size"] != content.stat().st_size:
            raise StorageError(
                f"{self.remote(file)}: {info['size']} of {content.stat().st_size} bytes arrived; start again"
            )
        self._write_note(file, _version(info), content)

    def sweep(self) -> None:
        """Remove temporary files that a killed put has left."""
        with self._asked(self.folder), contextlib.suppress(FileNotFoundError):
            for name in self.storage.find(self.root):
                if re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", name.rsplit("/", 1)[-1]):
                    self.storage.rm_file(name)

    def _rename(self, source: str, target: str) -> None:
        try:
            self.storage.mv(source, target)
        except OSError:  # some file systems do not replace an existing file
            self.storage.rm_file(target)
            self.storage.mv(source, target)

    def forget(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        self._note(file).unlink(missing_ok=True)

    def delete(self, file: Path) -> None:
        with self._asked(file), contextlib.suppress(FileNotFoundError):
            self.storage.rm_file(self._at(file))
        self.forget(file)

    # The lock is an object that names its owner, and that changes while its owner is at work.

    def take_lock(self, token: str) -> None:
        left = self._read_lock()
        if left is not None and not left["owner"].startswith(f"{self.name}:"):
            end = time.monotonic() + _SILENCE_SECONDS
            while time.monotonic() < end:
                time.sleep(min(1.0, _SILENCE_SECONDS / 10))
                now = self._read_lock()
                if now is None:
                    break
                if now != left:
                    raise StorageLocked(
                        f"{self.address}: another sppo is at work in this run; wait for it, or stop it"
                    )
        with self._asked(self.folder):
            if self._read_lock() is not None:
                self.storage.rm_file(f"{self.root}/{_LOCK}")
            try:
                self._write_lock(token, 0, "create")
            except FileExistsError:
                raise StorageLocked(
                    f"{self.address}: another sppo has just begun to work in this run; wait for it, or stop it"
                ) from None

    def renew_lock(self, lock: _Lock, ended: threading.Event) -> None:
        while not ended.wait(_RENEWAL_SECONDS):
            # a storage that fails for longer stops the stages themselves, and so does a lock that is lost
            with contextlib.suppress(Exception):
                self.keep_lock(lock)

    def keep_lock(self, lock: _Lock) -> None:
        """Renew a lock of this process, unless another process has taken it over meanwhile.

        Raises:
            StorageLocked: this process or its machine was suspended, and the lock is another process's now.
        """
        held = self._read_lock()
        silent = _now() - lock.renewed > _SILENCE_SECONDS
        if silent if held is None else held["owner"] not in ("", lock.token):
            raise StorageLocked(
                f"{self.address}: another sppo has taken this run over, while this one was suspended or could not reach the"
                " storage; wait for it, or stop it, then start this one again"
            )
        lock.renewals += 1
        self._write_lock(lock.token, lock.renewals, "overwrite")
        lock.renewed = _now()

    def release_lock(self, token: str) -> None:
        with contextlib.suppress(Exception):
            held = self._read_lock()
            if held is not None and held["owner"] == token:
                self.storage.rm_file(f"{self.root}/{_LOCK}")

    def _read_lock(self) -> dict[str, Any] | None:
        with self._asked(self.folder):
            self.storage.invalidate_cache()
            try:
                content = self.storage.cat_file(f"{self.root}/{_LOCK}")
            except FileNotFoundError:
                return None
        with contextlib.suppress(ValueError):
            lock = parse(content)
            if isinstance(lock, dict) and isinstance(lock.get("owner"), str):
                return lock
        return {"owner": ""}  # a damaged lock belongs to nobody, unless it changes

    def _write_lock(self, token: str, count: int, mode: str) -> None:
        if _protocol(self.storage) not in _OBJECT_STORES:
            self.storage.makedirs(self.root, exist_ok=True)
        content = json.dumps({"owner": token, "count": count}).encode()
        self.storage.pipe_file(f"{self.root}/{_LOCK}", content, mode=mode)

    def _at(self, file: Path) -> str:
        return f"{self.root}/{self.relative(file)}"

    def _note(self, file: Path) -> Path:
        return self.folder / _VERSIONS / file.absolute().relative_to(self.folder)

    def _write_note(self, file: Path, version: str, content: Path) -> None:
        note = self._note(file)
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f".{note.name}.{os.getpid()}")
        temporary.write_text(json.dumps([version, *_stamp(content)]), encoding="utf-8")
        os.replace(temporary, note)

    @contextlib.contextmanager
    def _asked(self, path: Path) -> Iterator[None]:
        """Turn the errors of the library behind fsspec into a StorageError."""
        try:
            yield
        except (StorageError, FileExistsError):
            raise
        except Exception as error:
            raise StorageError(
                f"{self.remote(path)}: the storage refuses ({type(error).__name__}: {error}). Everything that was published"
                " is kept, and the same command continues"
            ) from error


def _copy_of(path: Path) -> _Copy | None:
    path = path.absolute()
    for folder in (path, *path.parents):
        address = address_of(folder)
        if address is not None:
            return _Copy(folder, address)
    return None


@functools.cache
def _connect(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path within it."""
    from fsspec.core import url_to_fs

    try:
        storage, root = url_to_fs(address)
    except ImportError as error:
        extra = " (pip install 'sppo[s3]')" if address.startswith("s3") else ""
        raise StorageError(f"{address}: {error}{extra}") from error
    except Exception as error:
        folder = address.partition("://")[0] + ":"
        raise StorageError(
            f"{address}: no storage that fsspec can use ({error}). If a folder of this machine is meant, give its whole path,"
            f" or make the folder {folder} first"
        ) from error
    return storage, root.rstrip("/")


def _protocol(storage: Any) -> str:
    return storage.protocol if isinstance(storage.protocol, str) else str(storage.protocol[0])


def _version(info: Mapping[str, Any]) -> str:
    """A text that differs between two versions of an object: its digest if the storage gives one, else its time."""
    for key in ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created"):
        value = info.get(key)
        if value is not None:  # a listing may give the time in another form than the object itself
            return f"{info['size']} {value.timestamp() if isinstance(value, datetime) else value}"
    return f"{info['size']}"


def _stamp(file: Path) -> list[int]:
    state = file.stat()
    return [state.st_size, state.st_mtime_ns]
