"""Tables that people bring: a CSV or Parquet file, by any address, with a row an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import pandas as pd

from pti_core.addresses import redact, refusal
from pti_core.names import as_listed
from pti_core.reading import read_bytes

MISSING: Final = ["", "NA", "N/A", "#N/A", "n/a", "NaN", "nan", "NULL", "null", "None"]
"""How tables write that there is no number."""


def read_given(uri: str, what: str, numbers: Sequence[str], kind: type[ValueError]) -> pd.DataFrame:
    """The columns `numbers` (float64, NaN where empty) of a `.csv` or `.parquet`, and its `image_id` as the index.

    Names are text, 0001 is not 1 and NA is not missing, and become NFC as those of listings are. Raises `kind`,
    beginning with the words `what`, for another file, a missing column, text where a number belongs, and an address
    with a secret.
    """
    if refused := refusal(what, uri):
        raise kind(refused)
    name = f"{what} {redact(uri)!r}"
    try:
        data = io.BytesIO(read_bytes(uri))
        if not uri.lower().endswith((".csv", ".parquet")):
            raise kind(f"{name}: a .csv or .parquet expected")
        missing = dict.fromkeys(numbers, MISSING)
        csv = uri.lower().endswith(".csv")
        frame = (
            pd.read_csv(data, dtype={"image_id": "object"}, keep_default_na=False, na_values=missing)
            if csv
            else pd.read_parquet(data)
        )
    except kind:
        raise
    except FileNotFoundError:
        raise kind(f"{name}: no such file; check the path") from None
    except Exception as error:  # of the file system, of the parser
        raise kind(f"{name} cannot be read ({type(error).__name__}: {error}); check the file") from error
    for column in ("image_id", *numbers):
        if column not in frame.columns:
            raise kind(f"{name}: column {column!r} is missing; there are {', '.join(map(str, frame.columns))}")
    found = pd.DataFrame(index=pd.Index(frame["image_id"].astype(str).map(as_listed), name="image_id", dtype=object))
    for column in numbers:
        found[column] = pd.to_numeric(frame[column], errors="coerce").astype(float).to_numpy()
        if (wrong := found[column].isna() & frame[column].notna().to_numpy()).any():
            raise kind(f"{name}: image {found.index[wrong][0]!r} has a {column} that is no number")
    return found
