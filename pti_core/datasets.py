"""What a dataset is: files, archives or Parquet behind any fsspec URL, or the packaged `demo`. See docs/inputs.md.

Scanning lists names, sizes and etags; no image is opened here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pti_core.addresses import DEMO, canonical, local_path, redact, refusal, secret_in, split_chain
from pti_core.connections import harmless, out_of_resources, without_secrets
from pti_core.reading import DEMO_FOLDER, DEMO_URL, persistent, read_bytes
from pti_core.sources import files, parquet, tars, zips
from pti_core.sources.base import Container, DatasetError, Listed, images_in, joined, table, text
from pti_core.sources.groups import Grouping
from pti_core.sources.told import left_out, nothing_found

__all__ = ["LISTING", "DatasetError", "inputs_digest", "natural_key", "scan"]

Result = TypeVar("Result")

LISTING: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), False),  # its POSIX path below the dataset's root, unique in the dataset
        pa.field("uri", pa.string(), False),  # for `read_bytes`; without secrets, since tables hold it
        pa.field("group", pa.string(), False),  # images that share one tuned generator in mode `multi`
        pa.field("bytes", pa.int64(), False),
        pa.field("etag", pa.string(), False),  # a checksum, or "size-mtime": changes when the file does
    ]
)
"""What `scan` returns."""

_AT_ONCE = 16  # archives on a network that are listed at the same time
_NAMED = 5  # files that a message names
_SLICE = 1 << 20  # rows; a column of plain strings ends at 2 GB


def scan(
    dataset: str,
    limit: int | None = None,
    group_by: str | None = None,
    storage_options: dict[str, Any] | None = None,
    without: str | None = None,
    note: Callable[[str], object] = lambda remark: None,
) -> pa.Table:
    """List the images of a dataset as `LISTING`, the first `limit` of them.

    `dataset`: `demo`; a folder, read with all its subfolders; a glob; `{000..009}` or `{a,b}` in a name; one file; tar
    and zip archives; Parquet files; each as a path or any fsspec URL. A file counts by its extension (`EXTENSIONS`);
    hidden files and folders and `__MACOSX` do not. Archives and Parquet files in a folder count where it has no image.
    Rows are in natural order (`2.png` before `10.png`), those of Parquet files in that of the files.

    `group_by`: `folder` (the first below the root), `column:NAME` (of Parquet, a label of an archive or dataset.json),
    `regex:PATTERN` (what it captures of the image_id) or `count:N` (that many neighbours in the list); where an image
    has no such group, it is the image_id.
    `storage_options` go to the file system; credentials are better left to the environment. `without` is a folder
    whose files are left out: the output, where it lies in the dataset. `note` is told what a person may want to know.

    Raises DatasetError where nothing usable is found, with the reason, and for an address that holds a secret.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"limit {limit}: at least 1 expected; leave it out for all images")
    if not dataset.strip():
        raise DatasetError("dataset '': a folder, file, glob, URL or 'demo' expected")
    if refused := refusal("dataset", dataset):
        raise DatasetError(refused)
    grouping = Grouping.parse(group_by)
    in_order = False
    remarks: list[str] = []
    if dataset == DEMO:
        found = _demo()
    else:
        options = storage_options or {}
        found = _explained(dataset, options, lambda: _find(dataset, options, without, grouping.column, remarks))
        in_order = found.in_order
    if not len(found.images):
        raise DatasetError(nothing_found(dataset, found))
    if grouping.column and not pc.any(pc.is_valid(found.images["label"])).as_py():
        there = ", ".join(sorted(found.fields)[:20]) or "none"
        raise DatasetError(f"group_by {group_by!r}: no image of dataset {redact(dataset)!r} has it; there are: {there}")
    listed = _listing(dataset, found.images, grouping, in_order, limit)
    for remark in remarks:
        note(remark)
    return listed


def inputs_digest(listing: pa.Table) -> str:
    """SHA-256 (hex) of what is read: ids, sizes, etags and groups, not the place. A changed file changes it."""
    digest = hashlib.sha256()
    for batch in listing.select(["image_id", "bytes", "etag", "group"]).to_batches(max_chunksize=1 << 16):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update("{}\0{}\0{}\0{}\n".format(*row).encode())
    return digest.hexdigest()


def natural_key(name: str) -> tuple[str, str]:
    """Sort key of a path: folder by folder, numbers by value, letters without case, ties by the exact name."""
    return _NUMBER.sub(_number_key, name.casefold().replace("/", "\x01")), name


_NUMBER = re.compile(r"\d+")


def _number_key(match: re.Match[str]) -> str:
    digits = match[0] if match[0].isascii() else "".join(str(unicodedata.decimal(c)) for c in match[0])
    digits = digits.lstrip("0")
    return f"\x02{chr(0x30 + min(len(digits), 0xD000))}{digits}"  # the more digits, the larger


def _find(
    dataset: str, options: Mapping[str, Any], without: str | None, column: str | None, remarks: list[str]
) -> Listed:
    """All images of a dataset; what may be worth a remark is added to these."""
    address, inside, kind = canonical(dataset), "", None
    if (chain := split_chain(address)) and (head := chain[0].partition("://"))[0] in ("tar", "zip", "parquet"):
        (kind, _, inside), address = head, chain[1]
    files.check_answers(address, options)
    found = files.listing(address, options, without, kind)
    if kind is not None:
        chosen = found.files.get(kind, [])
    elif len(found.images):
        remarks += left_out(dataset, found)
        return _labelled(found, address, options, column)
    else:
        kind, chosen = _one_kind(dataset, found.files)
    if not chosen:
        return found
    for file in chosen:
        if "::" in file.url and split_chain(file.url) is None:
            raise DatasetError(f"dataset {file.url!r}: an archive cannot be read with '::' in its path; rename it")
        if secret := secret_in(file.url):
            raise DatasetError(_with_secret(file.name, secret, dataset))
    chosen = sorted((replace(file, inside=inside) for file in chosen), key=lambda file: natural_key(file.name))
    found.files = {kind: chosen}
    if kind == "parquet":
        opened = parquet.named(_of_all(lambda file: parquet.listing(file, column), chosen))
        opened.in_order = True
    else:
        lister = tars.listing if kind == "tar" else zips.listing
        parts = _of_all(lambda file: lister(file, column), chosen)
        opened = Listed.of(parts if found.one_file else map(_prefixed, chosen, parts))
    return Listed.of([found, opened])


def _of_all(list_one: Callable[[Container], Result], chosen: list[Container]) -> list[Result]:
    """Containers on a network are listed side by side."""

    def listed(file: Container) -> Result | DatasetError:
        try:
            return persistent(file.url, lambda: list_one(file))
        except DatasetError as error:
            return error

    if len(chosen) == 1 or local_path(chosen[0].url) is not None:
        found = [listed(file) for file in chosen]
    else:
        with ThreadPoolExecutor(_AT_ONCE, "pti-scan") as pool:
            found = list(pool.map(listed, chosen))
    if errors := [one for one in found if isinstance(one, DatasetError)]:
        raise errors[0] if len(errors) == 1 else DatasetError(_several(errors, len(chosen)))
    return [one for one in found if not isinstance(one, DatasetError)]


def _several(errors: list[DatasetError], files: int) -> str:
    """The errors of several files as one sentence: what is wrong with the first, and each way out once."""
    parts = [str(error).rpartition("; ") for error in errors[:_NAMED]]
    reasons = ", ".join(reason or all_of_it for reason, _, all_of_it in parts)
    rest = f", and {len(errors) - _NAMED:,} more" if len(errors) > _NAMED else ""
    ways_out = " or ".join(dict.fromkeys(way for reason, _, way in parts if reason))
    found = f"{len(errors):,} of {files:,} files cannot be listed: {reasons}{rest}"
    return f"{found}; {ways_out}" if ways_out else found


def _prefixed(file: Container, part: Listed) -> Listed:
    """The same number may be in many archives."""
    return replace(part, images=part.images.set_column(0, "name", joined(f"{file.stem}/", part.images["name"])))


def _one_kind(dataset: str, there: Mapping[str, list[Container]]) -> tuple[str, list[Container]]:
    """Which containers of a folder without images are meant."""
    kinds = set(there) - ({"parquet"} if "tar" in there else set())  # img2dataset writes both; its images are in tars
    if len(kinds) > 1:
        raise DatasetError(
            f"dataset {redact(dataset)!r} holds {' and '.join(sorted(kinds))} files; name those with images by a "
            "pattern such as '*.zip'"
        )
    kind = next(iter(kinds), "")
    return kind, there.get(kind, [])


def _labelled(found: Listed, root: str, options: Mapping[str, Any], column: str | None) -> Listed:
    """Images with the labels of a `dataset.json` in their folder, where they are asked for."""
    if column != "label":
        return found
    try:
        content = read_bytes(f"{root}/{zips.LABELS}", dict(options) or None)
    except OSError:
        return found
    labels = zips.labels_in(content, root)
    names = found.images["name"].to_pylist()
    found.images = found.images.set_column(4, "label", text([labels.get(name) for name in names]))
    return found


def _listing(dataset: str, images: pa.Table, grouping: Grouping, in_order: bool, limit: int | None) -> pa.Table:
    """Names become unique image_ids, in one order, with groups."""
    ids = pc.utf8_normalize(images["name"], form="NFC")  # one name may be written in two ways, and looks the same
    if pc.count_distinct(ids).as_py() < len(ids):
        raise DatasetError(_twice(dataset, ids, images["uri"]))
    _check_secrets(dataset, images)
    columns = {"image_id": ids, "uri": images["uri"], "label": images["label"]}
    rows = pa.table(columns | {"bytes": images["bytes"], "etag": images["etag"]})
    if not in_order:
        keys = [text([natural_key(name)[0] for name in chunk.to_pylist()]) for chunk in ids.chunks]
        by = pa.table({"key": pa.chunked_array(keys, pa.large_string()), "name": ids})
        rows = rows.take(pc.sort_indices(by, [("key", "ascending"), ("name", "ascending")])[:limit])
    rows = rows[:limit]
    group = grouping.groups(rows["image_id"], rows["label"])
    rows = rows.set_column(rows.column_names.index("label"), "group", group)
    parts = [rows.slice(start, _SLICE).cast(LISTING) for start in range(0, len(rows), _SLICE)]
    return pa.concat_tables(parts)


def _twice(dataset: str, ids: pa.ChunkedArray, uris: pa.ChunkedArray) -> str:
    counts = pc.value_counts(ids)
    name = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
    places = " and ".join(redact(ascii(uri)) for uri in uris.filter(pc.equal(ids, name))[:2].to_pylist())
    return f"dataset {redact(dataset)!r}: two files have the image_id {name.as_py()!r}, {places}; rename one of them"


def _check_secrets(dataset: str, images: pa.Table) -> None:
    """A server may list signed links."""
    suspects = images.filter(pc.match_substring_regex(images["uri"], "[?@]")).select(["name", "uri"])
    for name, uri in zip(*suspects.to_pydict().values(), strict=True):
        if secret := secret_in(uri):
            raise DatasetError(_with_secret(name, secret, dataset))


def _with_secret(name: str, secret: str, dataset: str) -> str:
    return (
        f"file {name!r} of dataset {redact(dataset)!r}: its address holds {secret}, which a run would store; "
        "copy the files to a place that needs none"
    )


def _demo() -> Listed:
    """The demo's URIs hold no path of this machine, so that workers elsewhere can read them."""
    if not DEMO_FOLDER.is_dir():
        raise DatasetError("dataset 'demo': its images are missing from this installation; install pti_core again")
    paths = list(DEMO_FOLDER.iterdir())
    name, sizes = text([path.name for path in paths]), [path.stat().st_size for path in paths]
    # the time of installation is no property of the image
    columns = {"name": name, "uri": joined(DEMO_URL, name), "bytes": pa.array(sizes, pa.int64())}
    return images_in(table(columns | {"etag": text([_sha256(path) for path in paths])}))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _explained(dataset: str, options: Mapping[str, Any], find: Callable[[], Listed]) -> Listed:
    """Turn whatever a file system raises into a DatasetError of one sentence."""
    try:
        return find()
    except DatasetError:
        raise
    except Exception as error:  # each file system has its own errors (botocore's are not OSErrors)
        raise DatasetError(f"dataset {redact(dataset)!r}{_why(error, options)}") from harmless(error, options)


def _why(error: Exception, options: Mapping[str, Any]) -> str:
    text = without_secrets(redact(str(error)), options)
    if isinstance(error, ImportError):
        return f": a package for this protocol is missing ({text})"
    if isinstance(error, FileNotFoundError):
        return " does not exist; check the path or bucket"
    if isinstance(error, PermissionError):
        return ": access denied; check credentials and permissions"
    if isinstance(error, ValueError):
        return f": {text}; a path or an fsspec URL expected"
    if short := out_of_resources(error):
        return f" cannot be listed: {short}"
    reason = " ".join(f"{type(error).__name__}: {text}".split())
    return f" cannot be listed ({reason}); check the address and credentials"
