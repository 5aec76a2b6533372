"""A vLLM server for the time of a benchmark, started as docs/servers.md does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

SETTINGS = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def serving(
    model: str, log: Path, length: int, prefix: Sequence[str] = (), arguments: Sequence[str] = ()
) -> Iterator[str]:
    """A server of sequences up to `length` tokens; yields its address.

    `prefix` stands before the command, further `arguments` behind it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(*prefix, sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--max-model-len", str(length), "--max-num-seqs", "512", "--max-num-batched-tokens"),
        *("8192", "--no-enable-chunked-prefill", "--logprobs-mode", "processed_logprobs"),
        *("--enable-scale-out", *arguments),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **SETTINGS}, stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_up(url):
            if process.poll() is not None:
                raise SystemExit(f"the server ended:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def is_up(url: str) -> bool:
    """Whether the server answers."""
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False
