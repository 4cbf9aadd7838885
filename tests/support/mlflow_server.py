"""A real MLflow server, to be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time

# Asked by a process of its own: the server may be on another network than the test.
_GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"


class Server:
    """`mlflow server` with its files in a folder, by default on loopback and on an SQLite database.

    `inside`: what a command has in front of it to run on the server's machine, of that `address`.
    """

    def __init__(self, folder, database=None, address="127.0.0.1", inside=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://{address}:{self.port}"
        self.database, self.address, self.inside = database or f"sqlite:///{folder}/server.db", address, inside

    def start(self):
        """Start, and return when it answers."""
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.inside, sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--host", self.address, "--port", str(self.port), "--backend-store-uri", self.database),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < end, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def answers(self):
        """Whether it is there."""
        return self.get("/health") is not None

    def get(self, path):
        """What it answers on its own machine; None where it does not."""
        asked = subprocess.run(
            [*self.inside, sys.executable, "-c", _GET, self.uri + path], capture_output=True, text=True, timeout=30
        )
        return asked.stdout if asked.returncode == 0 else None

    def kill(self):
        """Kill -9, with its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
