"""Addresses as parameters of flows: those with a secret are refused before a server has stored them with a run."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

_OTHER = r"(?!(?:github|git|zip|tar|parquet|libarchive)://)"  # where what stands before "@" is a name
_USER = rf"(?<![\w+.-]){_OTHER}[A-Za-z][\w+.-]*://(?!arn:)[^/\s?#@:]*:(?!\d*(?:[?/#]|$))[^\s?#]*@|https?://[^/\s?#]*@"
_NAMES = r"[Ss]ig|[Ss]ignature|[Tt]oken|[Ss]ecret|[Pp]assword|[Cc]redential|[Aa]pi[_-]?[Kk]ey"
_SIGNED = rf"://.*[?&#;](?:(?:[\w.-]*[_-])?(?:{_NAMES})=|[^=&;]*=eyJ)"

NO_SECRET: Final = rf"^(?!.*(?:{_USER}|{_SIGNED}))"
"""Of the form of a deployment, which servers and browsers check (so without flags, which these write in other ways, and
without `[/`, which Prefect's command takes for a style of its own where it says what did not match).
What it lets through is looked at again where the run begins, by `pti_core.addresses.refusal`, whose sentence is better:
a flow that is called in a process does not look at this."""

Address = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": NO_SECRET})]
