"""What a run costs without its method: images that are read, decoded and stored by an engine that does nothing.

    python -m benchmarks.orchestration --shards 10000 --images 1000000 --out result.md
    python -m benchmarks.orchestration --shards 100 --images 6400 --s3             # the output on S3 (moto)

The real flow by the real command, a real Prefect server (`benchmarks.servers`: it counts requests), the real
store in a temporary folder below --folder. Prints a Markdown table: time, CPU, memory over time, requests, files; and
what it costs afterwards to find that all is done, to show the status, to check and to sum up. Needs psutil.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
KINDS = 1000  # different pictures, each many times
MIB = 2**20


def png(seed: int, size: int = 16) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (size, size), random.Random(seed).randbytes(3 * size * size)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet_inputs(folder: Path, images: int) -> None:
    """Parquet files of 50,000 rows with an image column."""
    kinds = [png(i) for i in range(min(KINDS, images))]
    folder.mkdir()
    for first in range(0, images, 50_000):
        rows = range(first, min(images, first + 50_000))
        table = pa.table({"id": [f"{i:09d}.png" for i in rows], "image": [kinds[i % len(kinds)] for i in rows]})
        pq.write_table(table, folder / f"images-{first // 50_000:05d}.parquet", row_group_size=1000)


def linked_inputs(folder: Path, images: int) -> None:
    """A folder of folders of 1,000 files; they are hard links to few, so that they cost no space."""
    folder.mkdir()
    kinds = []
    for i in range(min(KINDS, images)):
        kinds.append(folder.with_name(f"kind-{i}"))
        kinds[-1].write_bytes(png(i))
    for i in range(images):
        if i % 1000 == 0:
            (within := folder / f"{i // 1000:05d}").mkdir()
        os.link(kinds[i % len(kinds)], within / f"{i:09d}.png")


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Counted:
    """A counting server in a process of its own."""

    def __init__(self, kind: str, env: dict[str, str], log: Path, ready: str) -> None:
        self.port = free_port()
        with log.open("wb") as out:
            command = [sys.executable, "-m", "benchmarks.servers", kind, str(self.port)]
            self.process = psutil.Popen(command, cwd=ROOT, env=os.environ | env, stdout=out, stderr=out)
        for _ in range(240):
            if self.process.poll() is not None:
                raise SystemExit(f"the {kind} server did not start: {log.read_text()[-2000:]}")
            try:
                self._get(ready)
                return
            except OSError:
                time.sleep(0.5)
        raise SystemExit(f"the {kind} server did not answer: {log.read_text()[-2000:]}")

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            return response.read()

    def counts(self) -> Counter[str]:
        """Requests so far."""
        return Counter(json.loads(self._get("/__counts__")))

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def usage(process: psutil.Process) -> tuple[float, float]:
    """Seconds of CPU of a process and its children, MiB of resident memory."""
    cpu, memory = 0.0, 0.0
    try:
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            cpu += times.user + times.system
            memory += one.memory_info().rss / MIB
    except psutil.NoSuchProcess:
        pass
    return cpu, memory


class Watched:
    """A command that is run to its end, with samples of its memory and its progress."""

    def __init__(self, command: Sequence[str], env: dict[str, str], log: Path, root: Path | None = None) -> None:
        self.samples: list[tuple[float, int, float]] = []  # seconds, shards done, MiB
        self.cpu = 0.0
        start = time.perf_counter()
        with log.open("wb") as out:
            process = psutil.Popen(command, env=os.environ | env, stdout=out, stderr=out)
            while True:
                try:
                    process.wait(timeout=1)
                    break
                except psutil.TimeoutExpired:
                    cpu, memory = usage(process)
                    self.cpu = max(cpu, self.cpu)
                    shards = sum(1 for _ in root.glob("runs/*/done/*")) if root else 0
                    self.samples.append((time.perf_counter() - start, shards, memory))
        self.seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-4000:]}")

    def peak(self) -> float:
        """MiB."""
        return max((sample[2] for sample in self.samples), default=0.0)

    def memory_at(self, share: float, total: int) -> float:
        """MiB when so much of the shards was done; by time where shards are not seen."""
        if self.samples[-1][1]:
            return next((m for _, shards, m in self.samples if shards >= share * total), self.samples[-1][2])
        return self.samples[min(len(self.samples) - 1, int(share * len(self.samples)))][2]


def step(what: str, root: str) -> dict[str, Any]:
    """One thing that is done after a run, in this process; seconds, CPU and how memory grew."""
    from pti_core.report import summary
    from pti_core.runs import load_run
    from pti_core.status import run_status
    from pti_core.storage.store import Store

    store = Store(root)
    name = store.runs()[0]
    run = load_run(root, name)
    before, peaks, ended = psutil.Process().memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peaks[0] = max(peaks[0], psutil.Process().memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    calls: dict[str, Any] = {
        "status": lambda: run_status(store, name),
        "markers": lambda: store.markers(name),
        "done": lambda: store.done(name),
        "check_complete": lambda: store.check_complete(name),
        "summary": lambda: summary(run),
        "manifest": lambda: run.manifest.table(),
        "shard": lambda: store.manifest(name).shard(run.manifest.shards - 1),
        "pandas metrics": lambda: __import__("pandas").read_parquet(f"{root}/metrics"),
    }
    calls[what]()
    result = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    ended.set()
    watcher.join()
    return result | {"mib": max(0, peaks[0] - before) / MIB}


STEPS = ("status", "markers", "done", "check_complete", "summary", "manifest", "shard", "pandas metrics")


class Bench:
    """The measurements, in order."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.rows: list[tuple[str, str]] = []

    def add(self, name: str, value: str) -> None:
        """A row of the table."""
        self.rows.append((name, value))
        print(f"{name}: {value}", flush=True)

    def run(self) -> None:
        """All of it."""
        args, folder = self.args, self.folder
        env = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_HOME": str(folder / "home")}
        env["PYTHONPATH"] = str(ROOT)  # this tree, whatever is installed
        if args.database:
            env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = args.database
        size = -(-args.images // args.shards)
        with ExitStack() as stack:
            dataset = args.dataset or str(folder / "data")
            if not args.dataset:
                start = time.perf_counter()
                (parquet_inputs if args.inputs == "parquet" else linked_inputs)(folder / "data", args.images)
                self.add("making the inputs", f"{time.perf_counter() - start:.0f} s")
            s3 = None
            root = str(folder / "out")
            if args.s3:
                s3 = stack.enter_context(Counted("s3", {}, folder / "s3.log", "/moto-api/data.json"))
                keys = {
                    "AWS_ACCESS_KEY_ID": "key",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_DEFAULT_REGION": "us-east-1",
                }
                env |= keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}"}
                os.environ.update(env)
                import boto3

                boto3.client("s3").create_bucket(Bucket="bench")
                root = "s3://bench/out"
            server = stack.enter_context(Counted("prefect", env, folder / "prefect.log", "/api/health"))
            env["PREFECT_API_URL"] = f"http://127.0.0.1:{server.port}/api"
            command = [sys.executable, "-m", "flows.cli", "run", dataset, "--output", root, "--preset", "noop"]
            command += ["--shard-size", str(size), "--shards-per-task", str(args.shards_per_task)]
            command += ["--workers", str(args.workers), "--generator", args.generator]
            command += [x for setting in args.set for x in ("--set", setting)]
            self.add("command", " ".join(["pti", *command[3:]]).replace(str(folder), "TEMP"))
            before, asked = server.counts(), s3.counts() if s3 else Counter()
            profiler = ["py-spy", "record", "-o", args.profile, "-f", "raw", "-r", "50", "--"] if args.profile else []
            watched = Watched([*profiler, *command], env, folder / "run.log", None if s3 else folder / "out")
            self.flow(watched, server, server.counts() - before)
            if s3:
                self.requests("S3", s3.counts() - asked)
            self.after(command, root, env, server, s3)
            if not args.s3:
                self.files(folder / "out")

    def flow(self, watched: Watched, server: Counted, asked: Counter[str]) -> None:
        """The run itself."""
        shards, images = self.args.shards, self.args.images
        self.add("run", f"{watched.seconds:.0f} s, {watched.cpu:.0f} s of CPU (2 cores)")
        first = next((s for s in watched.samples if s[1]), None)
        if first is not None:
            self.add("until the first shard is done", f"{first[0]:.0f} s")
            pace = (watched.samples[-1][0] - first[0]) / max(1, shards - first[1])
            quarters = [
                next((t for t, n, _ in watched.samples if n >= share * shards), watched.seconds)
                for share in (0.05, 0.25, 0.5, 0.75, 0.98)
            ]
            paces = [
                (b - a) / (share * shards)
                for a, b, share in zip(quarters, quarters[1:], (0.2, 0.25, 0.25, 0.23), strict=False)
            ]
            self.add(
                "a shard", f"{1000 * pace:.0f} ms; quarter by quarter {', '.join(f'{1000 * p:.0f}' for p in paces)} ms"
            )
        self.add("CPU a shard, an image", f"{1000 * watched.cpu / shards:.0f} ms, {1000 * watched.cpu / images:.2f} ms")
        memory = [f"{watched.memory_at(share, shards):.0f}" for share in (0.05, 0.25, 0.5, 0.75, 0.98)]
        self.add("memory of the flow at 5, 25, 50, 75, 98 % of the shards", f"{', '.join(memory)} MiB")
        self.add("peak memory of the flow", f"{watched.peak():.0f} MiB")
        self.requests("Prefect API", asked)
        cpu, memory_now = usage(server.process)
        self.add("Prefect server", f"{cpu:.0f} s of CPU, {memory_now:.0f} MiB at the end")
        database = self.folder / "home" / "prefect.db"
        if database.exists():
            size = sum(path.stat().st_size for path in database.parent.glob("prefect.db*"))
            self.add("its database", f"{size / MIB:.0f} MiB, {size / shards / 1024:.1f} KiB a shard")

    def requests(self, of: str, counts: Counter[str]) -> None:
        """Requests of a server."""
        asked = {k: n for k, n in counts.items() if not k.endswith("bytes")}
        size = sum(n for k, n in counts.items() if k.endswith("bytes"))
        total = sum(asked.values())
        self.add(f"{of}: requests and events", f"{total}, {total / self.args.shards:.2f} a shard, {size / MIB:.1f} MiB")
        for kind, n in sorted(asked.items(), key=lambda item: -item[1])[: self.args.kinds]:
            self.add(f"{of}: {kind}", f"{n} ({n / self.args.shards:.2f} a shard)")

    def after(
        self, command: Sequence[str], root: str, env: dict[str, str], server: Counted, s3: Counted | None
    ) -> None:
        """What is done with a run that has ended."""
        before, asked = server.counts(), s3.counts() if s3 else Counter()
        again = Watched(command, env, self.folder / "again.log")
        text = f"{again.seconds:.1f} s, {again.cpu:.1f} s of CPU, {again.peak():.0f} MiB"
        self.add("the same command again", f"{text}, {sum((server.counts() - before).values())} requests to Prefect")
        if s3:
            self.requests("S3, the same command again", s3.counts() - asked)
        status = Watched([sys.executable, "-m", "flows.cli", "status", root], env, self.folder / "status.log")
        self.add("`pti status`", f"{status.seconds:.1f} s, {status.cpu:.1f} s of CPU")
        for what in STEPS:
            if s3 and what.startswith("pandas"):
                continue
            asked = s3.counts() if s3 else Counter()
            own = [sys.executable, __file__, "--step", what, "--dataset", root]
            found = subprocess.run(own, env=os.environ | env, capture_output=True, text=True, check=False)
            if found.returncode:
                self.add(what, f"failed: {found.stderr.strip().splitlines()[-1]}")
                continue
            result = json.loads(found.stdout)
            text = f"{result['seconds']:.2f} s, {result['cpu']:.2f} s of CPU, +{result['mib']:.0f} MiB"
            self.add(what, text + (f", {sum((s3.counts() - asked).values())} requests" if s3 else ""))

    def files(self, root: Path) -> None:
        """What lies there."""
        for folder in sorted(root.iterdir()):
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            self.add(f"files of {folder.name}", f"{len(sizes)}, {sum(sizes) / MIB:.0f} MiB")

    def markdown(self) -> str:
        """The table."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in self.rows)
        return f"| what | found |\n| --- | --- |\n{rows}\n"


@contextmanager
def temporary(folder: Path | None, keep: bool) -> Iterator[Path]:
    """A folder that is removed afterwards."""
    made = Path(tempfile.mkdtemp(prefix="pti-bench-", dir=folder))
    try:
        yield made
    finally:
        if keep:
            print(f"kept: {made}")
        else:
            shutil.rmtree(made)


def main() -> None:
    """Parse the arguments, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--inputs", choices=("parquet", "files"), default="parquet", help="what is made and inverted")
    parser.add_argument("--dataset", help="instead: a data set that is there")
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--shards-per-task", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--s3", action="store_true", help="the output on S3 (moto in memory)")
    parser.add_argument("--database", help="of the Prefect server, e.g. postgresql+asyncpg://user@host/name")
    parser.add_argument("--kinds", type=int, default=12, help="kinds of requests that are shown")
    parser.add_argument("--profile", help="file for what py-spy finds of the flow")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    parser.add_argument("--keep", action="store_true", help="leave them there")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(step(args.step, args.dataset)))
        return
    with temporary(args.folder, args.keep) as folder:
        bench = Bench(args, folder)
        try:
            bench.run()
        finally:
            print("\n" + bench.markdown())
            if args.out:
                args.out.write_text(bench.markdown())


if __name__ == "__main__":
    main()
