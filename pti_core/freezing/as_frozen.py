"""What a run that is found again keeps as it was frozen, though a command or another version would have it otherwise.

And what a person is told of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pti_core.config import RunConfig
from pti_core.defaults import SHARD_SIZE
from pti_core.presets import configure
from pti_core.runs import Run
from pti_core.versions import versions

_COMPARED: Final = ("pti", "torch")  # what decides the numbers, beside the settings


def remarks_on_frozen(run: Run, config: RunConfig, shard_size: int = SHARD_SIZE) -> list[str]:
    """What a command or this version would have otherwise than a run that is resumed or extended, and what holds.

    `config` and `shard_size` are the command's; where it extends, the size of shards does hold, and is left out.
    """
    content = run.store.read_config(run.name)
    remarks = [*_shard_size(content, shard_size), *_batch(run, config)]
    others = _versions(content)
    return [*remarks, *others] if others and run.to_do().shards else remarks


def _shard_size(content: Mapping[str, Any], given: int) -> list[str]:
    first = content.get("shard_size", given)  # runs of before do not say
    if given in (SHARD_SIZE, first):
        return []
    return [
        f"shard_size {given} (--shard-size) changes nothing here: the run was made with {first}, and its shards stay; "
        "`--extend` takes it for what is appended, `--overwrite` for all"
    ]


def _batch(run: Run, config: RunConfig) -> list[str]:
    given, frozen = config.batch, run.config.batch
    if given in (configure(config.preset).batch, frozen):
        return []
    return [
        f"batch {given} (--set batch) changes nothing here: the run was made with {frozen}, which all its parts have; "
        "`--overwrite` does it anew"
    ]


def _versions(content: Mapping[str, Any]) -> list[str]:
    before, now = content.get("versions", {}), versions()
    other = [name for name in _COMPARED if before.get(name, now[name]) != now[name]]
    if not other:
        return []
    old, new = (" and ".join(f"{name} {made[name]}" for name in other) for made in (before, now))
    return [f"the run was frozen with {old}; what is left is done with {new}, so its numbers may differ a little"]
