"""How the file systems behind HTTP are spoken to: time limits, tries, what is tried again, and what is never shown.

The defaults go into fsspec's configuration of this process, so that every path through fsspec has them, and only where
the user's own (`FSSPEC_...` variables, `~/.config/fsspec`) says nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, Final, TypeVar

import fsspec
import fsspec.config
from fsspec.asyn import AsyncFileSystem
from fsspec.core import split_protocol, url_to_fs
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed, wait_random

from pti_core.addresses import redact, split_chain

Result = TypeVar("Result")

S3_TIMES: Final[Mapping[str, Any]] = {"connect_timeout": 5, "read_timeout": 30}
"""Seconds until a connection counts as refused, and between two pieces of an answer. Uploading does not count."""

S3_RETRIES: Final[Mapping[str, Any]] = {"mode": "standard", "total_max_attempts": 3}
"""Tries of one request (errors 500 to 504, throttling, connections lost); environment AWS_MAX_ATTEMPTS goes before."""

CHECK_SECONDS: Final = 30
"""How long a file system behind a network may take to answer the first request."""

LARGEST: Final = 1 << 30
"""Bytes of the largest file of an image that is read; a few hundred megapixels without compression."""


class TooLarge(OSError):
    """A file of more than `LARGEST` bytes, or one in an archive that would have so many unpacked."""


class OutOfResources(OSError):
    """A machine that cannot open one more file, or has no room for a temporary one; what it reads is not at fault."""


def out_of_resources(error: BaseException) -> OutOfResources | None:
    """What to do about an error that has to do with this machine, or that comes from one; None for all others."""
    found: BaseException | None = error
    seen = set[int]()  # an error may be its own cause
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, OutOfResources):
            return found
        if isinstance(found, OSError) and found.errno in (errno.EMFILE, errno.ENFILE):
            return OutOfResources("too many files are open on this machine; raise the limit (`ulimit -n`)")
        if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return no_temporary_file(found)
        found = found.__cause__ or found.__context__
    return None


def no_temporary_file(error: OSError) -> OutOfResources:
    """What to do where this machine takes none, or no more of one."""
    return OutOfResources(
        f"temporary files cannot be written ({error.strerror}); free space in /tmp, or set TMPDIR to a folder with more"
    )


def too_large(size: int | None = None) -> str:
    """What a file is, of so many bytes or of an unknown number once it is unpacked, and what is expected."""
    found = f"{size} bytes" if size else "unpacked"
    return f"{found} is too large; an image file of at most {LARGEST >> 30} GiB expected"


FINAL_ERRORS: Final = (
    TooLarge,
    OutOfResources,
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    FileExistsError,
)
"""Errors that no other try helps within seconds."""

_PUBLIC: Final = ("endpoint_url", "region_name", "signature_version", "addressing_style", "mode", "profile", "project")
_SECRET_VARIABLES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST: Final = 6  # characters of a secret; a shorter text is a word like "auto"

Options = Mapping[str, Mapping[str, Any]]
"""Options of file systems, by their protocol: `{"s3": {"key": ..., "client_kwargs": {...}}}`."""

_given: dict[str, dict[str, Any]] = {}  # by `use_options`
_before: dict[str, dict[str, Any] | None] = {}  # what they stand in the place of
_lock: Final = Lock()


def set_defaults() -> None:
    """Fill fsspec's configuration for S3 up; what is set there already stays. Can be repeated."""
    config = fsspec.config.conf.setdefault("s3", {}).setdefault("config_kwargs", {})
    wanted = dict(S3_TIMES)
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        wanted["retries"] = dict(S3_RETRIES)
    for name, value in wanted.items():
        config.setdefault(name, value)
    for name in ("botocore", "aiobotocore"):  # their DEBUG shows every request with its signature
        if (logger := logging.getLogger(name)).level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def use_options(options: Options) -> None:
    """Put options of file systems into fsspec's configuration of this process, in the place of those given before.

    `{}` leaves what the user's own configuration says. What other options a protocol has there stays. Raises whatever
    a file system raises that does not take them; nothing has changed then.
    """
    global _given
    with _lock:
        if options == _given:
            return  # other threads may be at work with them
        own = {name: _before.get(name, fsspec.config.conf.get(name)) for name in {*_before, *options}}
        new = {name: _merged(own[name] or {}, given) for name, given in options.items()}
        for name, merged in new.items():
            if issubclass(kind := fsspec.get_filesystem_class(name), AsyncFileSystem):
                kind(**merged)  # others would connect at once
        for name, before in own.items():
            if name in new:
                fsspec.config.conf[name] = new[name]
            elif before is None:
                fsspec.config.conf.pop(name, None)
            else:
                fsspec.config.conf[name] = before
        _before.clear()
        _before.update({name: own[name] for name in new})
        _given = {name: dict(given) for name, given in options.items()}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**old, **new}
    for name in old.keys() & new.keys():
        if isinstance(old[name], Mapping) and isinstance(new[name], Mapping):
            merged[name] = {**old[name], **new[name]}
    return merged


def tried_again(call: Callable[[], Result], waits: Sequence[float]) -> Result:
    """`call()`, and again after each of `waits` (s, and up to half of it more) where it failed for what may pass.

    That is whatever does not look final, since each file system has errors of its own. Raises the last one.
    """
    if not waits:
        return call()
    again = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_chain(*(wait_fixed(wait) + wait_random(0, wait / 2) for wait in waits)),
        stop=stop_after_attempt(len(waits) + 1),
        reraise=True,
    )
    return again(call)


def file_system(address: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The file system of an address, and the path there; a `::` in a file's name makes no chain of it, as in fsspec.

    Raises whatever a file system raises that cannot be opened.
    """
    options = options or {}
    if "::" not in address or split_chain(address):
        return url_to_fs(address, **options)  # type: ignore[no-any-return]
    protocol, _ = split_protocol(address)
    kind = fsspec.get_filesystem_class(protocol)
    return kind(**{**kind._get_kwargs_from_urls(address), **options}), kind._strip_protocol(address)


def read_whole(fs: Any, path: str) -> bytes:
    """A whole file by one request (s3fs asks for the size first where it may split what is above 50 MB)."""
    split = {"max_concurrency": 1} if "s3" in fs.protocol else {}
    return bytes(fs.cat_file(path, **split))


def without_secrets(text: str, options: Mapping[str, Any] | None = None) -> str:
    """A text without what fsspec's configuration, the environment or `options` hold of keys and secrets."""
    found = {*_leaves(fsspec.config.conf), *_leaves(options or {})}
    found |= {os.environ[name] for name in _SECRET_VARIABLES if name in os.environ}
    for secret in sorted(found, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    return text


def harmless(error: BaseException, options: Mapping[str, Any] | None = None) -> BaseException | None:
    """An error as the cause of another, with which it is printed and logged; None where that would give secrets away.

    It itself or what it comes from may hold them: a server answers with links that are signed.
    """
    printed = "".join(traceback.format_exception(error, limit=0))
    return error if without_secrets(redact(printed), options) == printed else None


def _leaves(options: Any) -> Iterator[str]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            if name not in _PUBLIC:
                yield from _leaves(value)
    elif isinstance(options, str):
        yield options


def _may_pass(error: BaseException) -> bool:
    final = isinstance(error, (*FINAL_ERRORS, ImportError, MemoryError)) or "NoCredentials" in type(error).__name__
    return isinstance(error, Exception) and not final


set_defaults()
