"""Arguments of the scripts and benchmarks, which use argparse."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from flows.options import SettingError, parse_setting


def set_option(text: str, option: str = "--set") -> tuple[str, Any]:
    """`parse_setting` as the type of an argument; of errors, argparse shows the sentence of an ArgumentTypeError."""
    try:
        return parse_setting(option, text)
    except SettingError as error:
        raise ArgumentTypeError(str(error)) from None
