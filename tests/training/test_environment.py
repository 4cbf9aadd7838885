import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from accelerate import PartialState

from cmgems.errors import UnavailableError, UserError
from cmgems.runtime.files import check_writable
from cmgems.tracking.client import tracking_problem
from cmgems.training.environment import check_same, preflight, report, versions

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

CLOSED = "http://127.0.0.1:1"
"""Nothing listens there."""


@pytest.fixture
def server():
    """Function that starts an HTTP server on loopback which answers each request with one status; its address."""
    started = []

    def start(status):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        started.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


def test_a_folder_that_is_there_or_can_be_made_is_writable(tmp_path):
    for folder in (tmp_path, tmp_path / "runs/new/1"):
        assert check_writable("output", folder).startswith(f"{folder} can be written, ")
    assert not (tmp_path / "runs").exists()


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/file is no folder; name another folder"):
        check_writable("output", tmp_path / "file/runs/1")


def _as_nobody(folder, connection):
    os.setuid(65534)
    try:
        connection.send(check_writable("output", folder))
    except UserError as error:
        connection.send(str(error))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_folder_of_somebody_else_is_refused(tmp_path, mode):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=mode)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(folder / "run", there))
    process.start()
    process.join(30)
    assert here.poll()
    assert "nothing can be written to" in here.recv()


def test_a_database_needs_a_folder_that_can_be_made(tmp_path):
    for folder in (tmp_path, tmp_path / "new/folder"):
        assert tracking_problem(f"sqlite:///{folder}/mlflow.db") is None
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is no folder" in str(tracking_problem(f"sqlite:///{tmp_path}/file/mlflow.db"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_server_that_answers_can_be_reached_also_if_it_wants_a_password(server):
    assert tracking_problem(server(200)) is None
    assert tracking_problem(server(401)) is None


def test_a_server_that_is_away_or_broken_cannot_be_reached(server):
    assert "Connection refused" in str(tracking_problem(CLOSED))
    assert str(tracking_problem(server(502))) == "HTTP status 502"


@pytest.mark.parametrize(
    ("uri", "problem", "kind"),
    [
        ("postgresql+psycopg2://nobody:nothing@127.0.0.1:1/mlflow", "Connection refused", UnavailableError),
        ("postgresql+pg8000://nobody@127.0.0.1:1/mlflow", "No module named 'pg8000'", UserError),
        ("postgresql://nobody@host:port/mlflow", "'port'", UserError),
    ],
)
def test_a_database_server_that_is_away_without_a_driver_or_misspelt_cannot_be_reached(uri, problem, kind):
    found = tracking_problem(uri)
    assert problem in str(found)
    assert type(found) is kind


def test_a_new_run_needs_its_tracking_server_and_one_that_goes_on_does_not(tmp_path, capsys):
    with pytest.raises(UnavailableError, match="start the server, name another place"):
        preflight(tmp_path / "run", CLOSED, needs_tracking=True)
    capsys.readouterr()
    preflight(tmp_path / "run", CLOSED, needs_tracking=False)
    software, output, tracking = capsys.readouterr().out.splitlines()
    assert software.startswith("cmgems ")
    assert "torch " in software
    assert output.startswith(f"output: {tmp_path}/run can be written, ")
    assert tracking.startswith(f"tracking: {CLOSED} does not answer")


def test_passwords_are_not_shown(tmp_path, capsys):
    uri = CLOSED.replace("//", "//me:secret@")
    preflight(tmp_path / "run", uri, needs_tracking=False)
    with pytest.raises(UnavailableError) as error:
        preflight(tmp_path / "run", uri, needs_tracking=True)
    shown = capsys.readouterr().out + str(error.value)
    assert "//me:***@127.0.0.1" in shown
    assert "secret" not in shown


def test_other_processes_than_the_first_leave_it_to_that_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    preflight(tmp_path / "run", CLOSED, needs_tracking=True)
    assert capsys.readouterr().out == ""


def test_machines_with_other_versions_are_refused():
    installed = versions()
    check_same(installed, dict(installed), "rank 1 on node2", "the same environment")
    other = {**installed, "torch": "2.12.0", "CUDA": "12.8"}
    with pytest.raises(
        UserError, match=r"rank 1 on node2 has torch 2\.12\.0 instead of .*, CUDA 12\.8 instead of \(none\)"
    ):
        check_same(installed, other, "rank 1 on node2", "the same environment")


def test_the_report_says_what_runs_where_and_who_launched_it(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    machine, launched = report(PartialState(), "none").splitlines()
    assert machine.startswith(f"{os.uname().nodename}: rank 0 on ")
    assert launched == "launched by python in SLURM job 17, restart 2: none, 1 process(es)"


@pytest.mark.slow
@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="a system without transparent huge pages"
)
def test_large_tensors_come_in_huge_pages():
    program = """
import resource
from cmgems.model import cpu
from cmgems import pretrain
from cmgems.training import engine, setup, trainer
cpu.prepare_cpu_memory()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 80e6 / 4096 / 4, "pages of 80 MB"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="mallinfo2 is glibc's")
def test_code_for_products_of_many_shapes_does_not_fill_the_memory():
    program = """
import ctypes
from cmgems.model import cpu
from cmgems import pretrain
from cmgems.training import engine, setup, trainer
from cmgems.model.linear import use_linear
cpu.prepare_cpu_memory()
import torch
class Memory(ctypes.Structure):
    _fields_ = [(str(number), ctypes.c_size_t) for number in range(7)] + [("used", ctypes.c_size_t)]
    _fields_ += [(str(number), ctypes.c_size_t) for number in range(8, 10)]
allocated = ctypes.CDLL(None).mallinfo2
allocated.restype = Memory
layer = torch.nn.Linear(64, 64)
use_linear(layer)
inputs = torch.ones(1_000, 64)
def train(shapes):
    for rows in shapes:
        layer(inputs[:rows]).sum().backward()
train(range(1, 50))
before = allocated().used
train(range(50, 150))
print(allocated().used - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1e6, "100 shapes, of each three products"
