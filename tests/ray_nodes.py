"""A real Ray cluster on loopback: a head and worker nodes, each a process tree of its own that a test may kill."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    """Of nodes and drivers alike: one secret of their own, no usage statistics, patience."""
    patient = {"agent_register_timeout_ms": "180000", "gcs_server_request_timeout_seconds": "120"}
    patient |= {"raylet_start_wait_time_s": "180"}
    alike = {"AUTH_MODE": "token", "AUTH_TOKEN": secrets.token_hex(32), "USAGE_STATS_ENABLED": "0"}
    return {f"RAY_{name}": value for name, value in (alike | patient).items()}


def start(arguments: list[str], log: Path, *, cpus: int) -> subprocess.Popen:
    """A node that is up; tried again, because Ray gives a node 30 seconds and a busy machine may need more."""
    for _ in range(5):
        # Given, not 0: for a port that an agent chooses itself Ray waits 15 seconds, and a busy machine needs more.
        agents = ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export")
        command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--num-gpus=0"]
        command += ["--min-worker-port=0", "--max-worker-port=0", *(f"--{a}-port={free_port()}" for a in agents)]
        command += ["--object-store-memory=80000000", "--disable-usage-stats", "--include-log-monitor=false"]
        with open(log, "wb") as output:  # a session of its own: signals for one node reach no other
            node = subprocess.Popen([*command, *arguments], stdout=output, stderr=output, start_new_session=True)
        while node.poll() is None:
            if b"Ray runtime started" in log.read_bytes():
                return node
            time.sleep(0.3)
    raise RuntimeError(f"the node did not come up: {log.read_text()[-2000:]}")


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def working(node: subprocess.Popen, name: str) -> list[int]:
    """Worker processes of a node that are inside a task, by the name that Ray gives them then."""
    out = []
    for child in psutil.Process(node.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            out += [child.pid] if child.cmdline()[:1] and child.cmdline()[0].startswith(name) else []
    return out


def end(node: subprocess.Popen) -> None:
    if node.poll() is None:
        below = children(node.pid)
        node.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(10)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.kill()
        node.wait(60)


@contextlib.contextmanager
def cluster(*, cpus: int):
    """(address, nodes): a head without cores and two workers with `cpus`; os.environ must hold `environment()`."""
    folder, port, nodes = Path(tempfile.mkdtemp(prefix="ray")), free_port(), []  # sockets need a short name
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    head += ["--no-monitor", f"--ray-client-server-port={free_port()}", f"--dashboard-port={free_port()}"]
    try:
        nodes.append(start(head, folder / "head.log", cpus=0))
        for i in range(2):
            nodes.append(start([f"--address=127.0.0.1:{port}"], folder / f"worker{i}.log", cpus=cpus))
        yield f"127.0.0.1:{port}", nodes
    finally:
        for node in reversed(nodes):
            end(node)
        shutil.rmtree(folder, ignore_errors=True)
