"""Two processes that know of each other."""

import os
import socket
import subprocess
import sys

from ..helpers import quick_to_compile


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


def test_two_processes_train_what_one_does():
    address = free_address()
    # The workers choose their devices.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.devices.worker", address, str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=kept | quick_to_compile(),
        )
        for process in range(2)
    ]
    try:
        said = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [w.returncode for w in workers] == [0, 0], "\n".join(said)
    assert all("equal" in text for text in said)
