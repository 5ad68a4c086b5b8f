"""Addresses of data sets, generators and outputs: one form for one place, and none that holds a secret.

A run stores its addresses, since workers read by them; so a password or a signed query in one would end up in its
tables, logs and pictures. Such addresses are refused before anything is written.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

DEMO: Final = "demo"

_CHAINED = r"(?:zip|tar|parquet|libarchive|simplecache|filecache|blockcache|cached)"  # what may stand before "::"
_CHAIN = re.compile(rf"({_CHAINED}(?:://.*?)?)::(.*)", re.DOTALL)
_PLACE = re.compile(r"(.*)!(?:(gz|bz2|xz):)?(\d+)\+(\d+)", re.DOTALL)  # after a name, % and :: in it escaped
_ROW = re.compile(r"(.*?)(?:!(\w+)=([^!]*))?!(\d+)", re.DOTALL)  # in an id ! is escaped as well
_LOCAL = re.compile(r"(?:file|local):(?://)?", re.IGNORECASE)
# Here the part before "@" is a container or a repository.
_NAME_BEFORE_AT = r"(?:abfss?|az|wasbs?|oci|github|git)://"
_USERINFO = re.compile(
    rf"(?<![\w+.-])(?!{_NAME_BEFORE_AT})([a-z][\w+.-]*://)"
    r"(?:[^/\s?#]*@|(?!arn:)[^/@:\s\[]+:(?!:|\d*(?:[/?#\s]|$))\S*@)",  # the second: with a slash in the password
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"[^/@:\s\[]+:[^\s]*@")
_SECRET_NAME = (
    r"[\w.%-]*(?:(?<!de)(?<!as)sig(?:n|$|(?=[=&_-]))|token|secret|passw|pwd|cred|auth(?!or(?!i))|jwt|hmac|session"
    r"|(?<!mon)key(?!word)|access-?_?id|policy|(?<=[?&;])(?:hm|sas|pass|code)(?==)|hdnea|hdnts)[\w.%-]*"
)
_SIGNED = re.compile(
    rf"[?&;#~](?:{_SECRET_NAME}=|[^=&;]*=(?:eyJ|(?=[^&;]*[a-z])(?=[^&;]*\d)[\w+/%=-]{{40,}}))", re.IGNORECASE
)
_SIGNED_VALUE = re.compile(rf"([?&;]{_SECRET_NAME}=)[^&\s'\"]+", re.IGNORECASE)
_SAFE_WAY = (
    "a run would store it; leave it out and give credentials by the environment (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY) or by fsspec's configuration (FSSPEC_... variables, ~/.config/fsspec)"
)


def split_chain(address: str) -> tuple[str, str] | None:
    """`zip://a::b.zip` as `zip://a` and `b.zip`; None for what is no chain: a file's name may hold `::` as well."""
    match = _CHAIN.fullmatch(address)
    return (match[1], match[2]) if match else None


class Place(NamedTuple):
    """Where an archive's member is, as its address tells: `tar://NAME!OFFSET+SIZE::URL`."""

    name: str
    packed: str | None  # the compression of a tar, in whose unpacked form `start` counts
    start: int  # of the member's header, bytes
    size: int  # bytes of its data in the archive


def place_in(inside: str) -> Place | None:
    """The place in the first part of an address, without its protocol; None where it is a name alone."""
    match = _PLACE.fullmatch(inside)
    if match is None:
        return None
    return Place(match[1].replace("%3A", ":").replace("%25", "%"), match[2], int(match[3]), int(match[4]))


class ParquetRow(NamedTuple):
    """Where a row of a Parquet file is, as its address tells: `parquet://COLUMN!FIELD=ID!ROW::URL`."""

    column: str
    row: int
    field: str | None = None  # the column with its id, or `path` of the image itself; None where no id is known
    id: str = ""


def row_in(inside: str) -> ParquetRow | None:
    """The row in the first part of an address, without its protocol; None for anything else."""
    match = _ROW.fullmatch(inside)
    if match is None:
        return None
    column, field, id_, row = match.groups()
    id_ = (id_ or "").replace("%21", "!").replace("%3A", ":").replace("%25", "%")
    return ParquetRow(column, int(row), field, id_)


def lasting(address: str) -> str:
    """An address without the place of a member or row that has a name: by this an input is known.

    Its place changes when the file is made again.
    """
    chain = split_chain(address)
    kind, _, inside = chain[0].partition("://") if chain else ("", "", "")
    if chain and kind == "parquet":
        row = row_in(inside)
        return f"{kind}://{inside.rpartition('!')[0]}::{chain[1]}" if row and row.field else address
    place = place_in(inside) if kind in ("tar", "zip") else None
    return f"{kind}://{place.name}::{chain[1]}" if chain and place else address


def local_path(address: str) -> str | None:
    """The path, as it is written, of an address on this machine's disk; None for any other."""
    if split_chain(address) or address == DEMO:
        return None
    if match := _LOCAL.match(address):
        return address[match.end() :]
    return None if "://" in address else address


def canonical(address: str) -> str:
    """The one form of all addresses of a place: local paths absolute, no slash at the end.

    Links are not resolved, apart from those before a `..`, which stands for the folder above their target.
    """
    if not address.strip() or address == DEMO:
        return address
    if chain := split_chain(address):
        head, rest = chain[0].rstrip("/:"), canonical(chain[1])
        kind, _, inside = head.partition("://")
        return f"{kind}://{inside}::{rest}"
    if (path := local_path(address)) is not None:
        full = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 (leaves the ~ of an unknown user as it is)
        return str(full.resolve() if ".." in full.parts else full)
    return address if re.match(r"https?://[^?#]*[?#]", address) or address.endswith("://") else address.rstrip("/")


def without_query(address: str) -> str:
    """A web address up to its query; a `?` elsewhere belongs to the name."""
    return re.sub(r"^(https?://[^?#]*)[?#].*", r"\1", address, flags=re.IGNORECASE | re.DOTALL)


def secret_in(address: str) -> str | None:
    """What kind of secret an address holds, in words; None for one that may be stored and shown."""
    if chain := split_chain(address):
        member = chain[0].startswith(("zip", "tar", "parquet", "libarchive"))  # its name below the archive's root
        return secret_in(chain[1]) or (None if member else secret_in(chain[0]))
    if local_path(address) is not None:
        return None
    rest = address.partition("://")[2]
    if (match := _USERINFO.match(address)) and _is_user(match):
        return "a user name or password"
    return "a signature or token in its query" if _SIGNED.search(rest) else None


def _is_user(match: re.Match[str]) -> bool:
    """Whether what stands before an "@" tells a secret, which a bucket's name does not."""
    scheme, _, user = match[0].partition("://")
    return scheme.lower() in ("http", "https") or _PASSWORD.match(user) is not None


def secret_in_name(name: str) -> str | None:
    """The same for what a table calls an image or a group: an address, what is behind its last slash, or text with one.

    Such as the JSON of a field that has several values.
    """
    text = re.sub(r"^/*(\w+):/+", r"\1://", name)  # of which a path has but one slash
    before = text[: text.rfind("@") + 1]  # not to look through the rest from every place
    if any(map(_is_user, _USERINFO.finditer(before))):
        return "a user name or password"
    return "a signature or token in its query" if _SIGNED.search(name) else None


def refusal(what: str, address: str) -> str | None:
    """The sentence that refuses an address with a secret, without the secret; None for one without."""
    secret = secret_in(address)
    return f"{what} {redact(address)!r}: the address holds {secret}, and {_SAFE_WAY}" if secret else None


def redact(text: str) -> str:
    """Addresses fit for messages, logs and tables: without users and passwords, queries of the web, signed queries."""
    text = _USERINFO.sub(r"\1", text)
    text = re.sub(r"(https?://[^?#\s]*)[?#]\S*", r"\1", text)
    return _SIGNED_VALUE.sub(r"\1***", text)
