"""Addresses as parameters of flows: those with a secret are refused before a server has stored them with a run."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

_HTTP = "[Hh][Tt][Tt][Pp][Ss]?"
_NAMED = r"(?!(?:github|git|abfss?|az|wasbs?|oci|file|local|zip|tar|parquet|libarchive)://)"  # a name is before the "@"
_USER = rf"(?<![\w+.-]){_NAMED}[A-Za-z][\w+.-]*://(?!arn:)[^\s/?#@:\[]+:(?!:|\d*(?:[?/#]|$))[^\s?#]*@"
_HTTP_USER = rf"(?:^|::){_HTTP}://[^\s/?#]*@"
_NAMES = r"[Ss]ig|SIG|[Ss]ignature|SIGNATURE|[Tt]oken|[Ss]ecret|[Pp]assword|[Cc]redential|[Aa]pi[_-]?[Kk]ey"
_SIGNED = rf"://[\s\S]*[?&#;](?:(?:[\w.-]*[_-])?(?:{_NAMES})=|key=|[^=&;]*=eyJ)"
_MAY_BE_SIGNED = r"(?!(?:file|local):|(?:zip|tar|parquet|libarchive)://[^:]*[?&#;][^:]*::)"

NO_SECRET: Final = rf"^(?![\s\S]*(?:{_USER}|{_HTTP_USER}))(?!{_MAY_BE_SIGNED}[\s\S]*{_SIGNED})"
"""Of the form of a deployment, which servers and browsers check (so without flags, which these write in other ways, and
without `[/`, which Prefect's command takes for a style of its own where it says what did not match).
What it lets through is looked at again where the run begins, by `pti_core.addresses.refusal`, whose sentence is better:
a flow that is called in a process does not look at this."""

Address = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": NO_SECRET})]
