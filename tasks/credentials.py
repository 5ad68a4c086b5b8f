"""Credentials from a Prefect block, for this process alone: in no parameter, file, table or log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

from prefect.blocks.system import Secret

from pti_core.connections import use_options

_BLOCK_NAME: Final = r"[a-z0-9-]+"  # as Prefect allows
_EXPECTED: Final = 'a JSON object of fsspec options by protocol expected, as {"s3": {"key": "...", "secret": "..."}}'


class CredentialsError(ValueError):
    """A block that cannot be used; the message names it and shows nothing of what it holds."""


def use_credentials(block: str | None) -> None:
    """Let all file systems of this process take their options from the Prefect `Secret` block of this name.

    It holds a JSON object by protocol, e.g. `{"s3": {"key": "...", "secret": "...", "client_kwargs": {"endpoint_url":
    "https://..."}}}`, which goes before the same options of fsspec's own configuration. Without a block that is what
    counts (and the usual AWS chain), also after a call with one. The same block again costs one request.

    Raises CredentialsError for a block that is missing or malformed, without its content.
    """
    options = {} if block is None else _options(block)
    try:
        use_options(options)
    except Exception as error:  # each file system checks its options in its own way
        kind = type(error).__name__  # its text may hold them
    else:
        return
    protocols = ", ".join(repr(name) for name in options)
    raise CredentialsError(
        f"credentials block {block!r}: the file system {protocols} does not take these options ({kind}); "
        f"check their names, and that a package for it is installed"
    )


def _options(block: str) -> dict[str, dict[str, Any]]:
    if not re.fullmatch(_BLOCK_NAME, block):  # perhaps the secrets themselves
        raise CredentialsError(
            "credentials: the name of a Prefect Secret block expected (a-z, 0-9, -), not its content"
        )
    content, unknown = None, False
    try:
        content = cast(Any, Secret).load(block, _sync=True).get()
    except ValueError as error:  # its text may hold what the block does
        unknown = "Unable to find block" in str(error)
    if unknown:
        raise CredentialsError(f"credentials block {block!r}: Prefect has no Secret block of this name; create one")
    if not isinstance(content, Mapping) or not content:
        raise CredentialsError(f"credentials block {block!r} holds something else; {_EXPECTED}")
    if wrong := sum(not isinstance(options, Mapping) for options in content.values()):
        raise CredentialsError(f"credentials block {block!r}: {wrong} of its entries are no JSON objects; {_EXPECTED}")
    return {str(name): dict(options) for name, options in content.items()}
