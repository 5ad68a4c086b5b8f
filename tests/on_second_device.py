"""Run `pti` commands in a process whose torch has the device of second_device.cpp in place of a GPU.

python on_second_device.py LIBRARY '[["run", "data", ...], ["edit", ...]]'

With an empty LIBRARY they run on the CPU, with `cuda` on a GPU (float32 as exact as the CPU's), with `cuda, rounded` on
one that rounds as torch has it by default. A command `["benchmarks.side", ...]` runs that module.
"""

import json
import sys
from importlib import import_module
from types import ModuleType

import torch

NAME = "second"
CUDA = "cuda"
ROUNDED = "cuda, rounded"


def add_device(library: str) -> None:
    """Load the compiled device; from then on `torch.device("second")` is one, and torch's accelerator."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    module = ModuleType(f"torch.{NAME}")
    module.is_available, module.device_count, module.current_device = lambda: True, lambda: 1, lambda: 0
    module._is_in_bad_fork, module.manual_seed_all = lambda: False, lambda seed: None
    module.get_rng_state, module.set_rng_state = lambda device: torch.get_rng_state(), lambda state, device: None
    torch._register_device_module(NAME, module)


def main() -> None:
    library, commands = sys.argv[1:]
    if library == CUDA:
        torch.backends.cudnn.allow_tf32 = False
    elif library and library != ROUNDED:
        add_device(library)
    for name, *arguments in json.loads(commands):
        of_pti = not name.startswith("benchmarks.")
        sys.argv = ["pti", name, *arguments] if of_pti else [name, *arguments]
        try:
            import_module("flows.cli" if of_pti else name).main()
        except SystemExit as end:
            if end.code:
                raise
    if library:
        made = (
            torch.ops.second_device.allocations()
            if library not in (CUDA, ROUNDED)
            else torch.cuda.memory_stats()["allocation.all.allocated"]
        )
        if made < 1000:
            sys.exit("the commands ran elsewhere")


if __name__ == "__main__":
    main()
