"""A real PostgreSQL, of Debian's package, with all its files in one temporary folder. Nothing under /etc is touched."""

import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg2

from tests.support.machine import require

INSTALL = "apt-get install --no-install-recommends postgresql"


def find_program(name: str) -> str:
    """Where a program of PostgreSQL's server is: Debian leaves them out of PATH, in a folder for each version."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(installed[-1]) if installed else name


def require_postgresql() -> None:
    """Skip, or fail where CI is set, on a machine that cannot run it."""
    require((find_program("initdb"), find_program("postgres")), INSTALL, root=True)


class Database:
    """A running PostgreSQL; `with Database() as database:`. Reached by its socket, whatever network one is on."""

    def __enter__(self) -> "Database":
        # Not in a folder of pytest's, which only root can enter; a socket's path may have 107 characters, too.
        self.folder = Path(tempfile.mkdtemp(prefix="cmgems-postgresql-"))
        # Which driver "postgresql://" means without a name depends on the release of SQLAlchemy.
        self.uri = f"postgresql+psycopg2://postgres@/postgres?host={self.folder}"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            shutil.chown(self.folder, "postgres", "postgres")
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def query(self, statement: str, *values: object) -> list[tuple]:
        """Rows that a statement gives now."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()

    def _start(self) -> None:
        # "trust" lets in whoever reaches the socket, in a folder that only root and postgres can enter.
        initialize = self._run("initdb", "--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync")
        assert initialize.wait(60) == 0, self._log()
        # No network. Nothing is to survive this machine, which the disk need not be waited for.
        self._process = self._run("postgres", "-k", self.folder, "-c", "listen_addresses=", "-c", "fsync=off")
        end = time.monotonic() + 60
        while not self._connects():
            assert self._process.poll() is None, self._log()
            assert time.monotonic() < end, self._log()
            time.sleep(0.1)

    def _run(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a program as the user that the package made: it refuses to run as root."""
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [find_program(program), "-D", str(self.folder / "data"), *map(str, arguments)],
                user="postgres",
                group="postgres",
                extra_groups=[],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def _connects(self) -> bool:
        with suppress(psycopg2.OperationalError):
            self._connection = psycopg2.connect(host=str(self.folder), user="postgres")
            self._connection.autocommit = True
            return True
        return False

    def _log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> None:
        """End it, and remove its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # to PostgreSQL: without waiting until clients have left
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder)
