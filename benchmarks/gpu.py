"""All that is to be known of a GPU, by one command, for a GPU that is there for some minutes only.

    python -m benchmarks.gpu                         # nine minutes at most; out/gpu/gpu.md, written as it goes
    python -m benchmarks.gpu --part steps --part 1024

Its parts are below, what tells most first. Each is a process of its own with a time limit; one that fails or takes too
long is told of, and the next one begins.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = "pti_core", "flows", "tasks", "benchmarks"
VERSIONS = "torch", "torchvision", "numpy", "pyarrow", "prefect", "pytest"
LEAST = 10.0  # seconds without which no part begins
SHOWN = 8000  # characters of a part's output on the page, its last ones
TABLES = "tests/test_second_device.py::test_all_tables_are_those_of_the_cpu"
BENCH = "-m", "benchmarks.bench", "--preset", "fast"
R1024 = "--generator", "random-1024"  # untrained: it tells of speed and nothing of quality
FP32 = "--precision", "fp32"
POCKET = "--precision", "bf16", *FP32, "--set", "batch=64"  # `half` is bf16 for it too


@dataclass(frozen=True)
class Part:
    """What is run by this Python: arguments, where `{output}` is the folder of the part's own files."""

    name: str
    about: str
    command: Sequence[str]
    limit: float  # seconds


PARTS = (
    Part(
        "machine",
        "versions, the GPU, and whether all modules can be imported",
        ("-m", "benchmarks.gpu", "--machine"),
        60,
    ),
    Part(
        "exact", "float32 where it has to be exact", ("-m", "pytest", "-qs", "tests/test_device.py", "-k", "gpu_s"), 60
    ),
    Part(
        "tables",
        "the tables of one job are the CPU's",
        ("-m", "pytest", "-q", TABLES, "-k", "cuda and stylegan2 and each"),
        100,
    ),
    Part("1024", "preset fast", (*BENCH, *R1024, "--no-plain", "--limit", "1", "--output", "{output}"), 240),
    Part("steps", "a step in each of its ways", ("-m", "benchmarks.steps", *R1024, "--rounds", "4"), 180),
    Part("128", "speed and quality", (*BENCH, *POCKET, "--no-plain", "--output", "{output}"), 120),
    Part("plain", "beside the plain loop", (*BENCH, *R1024, *FP32, "--limit", "1", "--output", "{output}"), 240),
    Part(
        "all-tables", "all jobs, an encoder", ("-m", "pytest", "-q", "tests/test_second_device.py", "-k", "cuda"), 540
    ),
    Part("compile", "a step with torch.compile", ("-m", "benchmarks.steps", *R1024, "--rounds", "4", "--compile"), 240),
)


def machine() -> Iterator[str]:
    """Lines on what it is measured with; of modules only those that cannot be imported."""
    import torch

    yield f"Python {sys.version.split()[0]}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    for name in VERSIONS:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} is missing"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    else:
        yield "no GPU that torch sees"
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            try:
                importlib.import_module(module.name)
            except Exception as error:
                yield f"cannot be imported: {module.name} ({type(error).__name__}: {error})"


def run(part: Part, folder: Path, limit: float) -> tuple[str, str]:
    """How it ended, and its output, which is also in a file. What it has started is ended with it."""
    path, own = folder / f"{part.name}.txt", folder / part.name
    command = [sys.executable, *(word.format(output=own) for word in part.command)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    start = time.perf_counter()
    with path.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
            ended = f"after {time.perf_counter() - start:.0f} s" + (f", FAILED (status {status})" if status else "")
        except subprocess.TimeoutExpired:
            ended = f"STOPPED after its {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output = path.read_text(errors="replace")
    for table in sorted(own.glob("*.md")):  # of a part that was stopped: what it had by then
        if (text := table.read_text().strip()) not in output:
            output += f"\n{text}"
    return ended, output


def run_all(parts: Sequence[Part], seconds: float, folder: Path) -> Path:
    """Run the parts as long as there is time; the page, which is whole after every one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    page, end, text = folder / "gpu.md", time.monotonic() + seconds, "# On a GPU\n"
    for part in parts:
        left = end - time.monotonic()
        enough = left >= LEAST
        ended, output = run(part, folder.resolve(), min(part.limit, left)) if enough else ("no time left", "")
        command = " ".join(part.command).format(output=folder / part.name)
        text += f"\n## {part.name}: {part.about}\n\n    python {command}\n\n{ended}\n\n{shown(output)}\n"
        page.write_text(text)
        print(f"{part.name}: {ended}", flush=True)
    return page


def shown(output: str) -> str:
    """A part's output for the page: its tables as they are, the rest as code."""
    kept, lines, table = output[-SHOWN:].strip(), [], False
    for line in kept.splitlines():
        if line.startswith("|") != table:
            table = not table
            lines.append("")
        lines.append(line if table else f"    {line}".rstrip())
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, run the parts, say where the page is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--output", type=Path, default=Path("out/gpu"))
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS], help="only these")
    parser.add_argument("--machine", action="store_true", help="only print what the first part prints")
    args = parser.parse_args()
    if args.machine:
        found = []
        for line in machine():
            print(line, flush=True)
            found.append(line)
        sys.exit(any("cannot be imported" in line for line in found))
    chosen = [part for part in PARTS if not args.part or part.name in args.part]
    print(f"page  {run_all(chosen, 60 * args.minutes, args.output)}")


if __name__ == "__main__":
    main()
