"""Processes that die, go silent, get signals; a tracking server that goes away."""

import os
import signal
import subprocess
import time

import mlflow
import psutil
import pytest

from tests.support.mlflow_server import Server
from tests.training.launching import ENVIRONMENT, REPOSITORY, ZERO2, command, history, the_run

slow = pytest.mark.slow


class Started:
    """A launch of the tiny recipe in two processes, without end."""

    def __init__(self, recipe, folder, uri, *overrides):
        self.folder, self.log = folder / "run", folder / "log"
        settings = ["--config", str(recipe), "--tracking.uri", uri, "--output", str(self.folder), *overrides]
        # Seconds that the launcher leaves its other processes to end by themselves, 30 by default.
        environment = {**ENVIRONMENT, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}
        with self.log.open("w") as log:
            self.launcher = subprocess.Popen(
                command(ZERO2, *settings),
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a process group of its own, as a terminal makes
            )

    def wait_for(self, text, seconds=120):
        """Return when the log has a text."""
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.launcher.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def rank(self, number):
        """The process of a rank."""
        workers = psutil.Process(self.launcher.pid).children(recursive=True)
        [found] = [w for w in workers if w.environ().get("RANK") == str(number) and w.ppid() == self.launcher.pid]
        return found

    def end(self, seconds):
        """Wait for the end of the launcher, which has to come within some seconds; returns the log."""
        self.launcher.wait(seconds)
        assert self.launcher.returncode != 0
        return self.log.read_text()


@pytest.fixture
def start(tiny_recipe, tmp_path):
    """Function that starts a run, which is ended after the test."""
    started = []

    def begin(*overrides, uri=f"sqlite:///{tmp_path}/mlflow.db"):
        mlflow.set_tracking_uri(uri)
        started.append(Started(tiny_recipe, tmp_path, uri, "--training.steps", "100000", *overrides))
        return started[-1]

    yield begin
    for run in started:
        if run.launcher.poll() is None:
            family = psutil.Process(run.launcher.pid).children(recursive=True)
            for process in (*family, psutil.Process(run.launcher.pid)):
                process.kill()
            run.launcher.wait()


@pytest.mark.parametrize("dies", [pytest.param(0, marks=pytest.mark.matrix), pytest.param(1, marks=slow)])
def test_a_dead_rank_ends_the_run_within_seconds(start, dies):
    run = start()
    run.wait_for("step 8 ")
    other = run.rank(1 - dies)
    run.rank(dies).kill()
    other.wait(20)
    log = run.end(20)
    assert f"error: rank {1 - dies} has lost another process" in log
    if dies == 1:
        assert the_run().info.status == "FAILED"


@slow
def test_a_killed_loader_worker_ends_the_run_with_one_message(start):
    run = start("--corpus.workers", "1")
    run.wait_for("step 8 ")
    rank = run.rank(0)
    [worker] = [child for child in rank.children() if child.cmdline() == rank.cmdline()]
    worker.kill()
    log = run.end(60)
    assert "error: rank 0 has lost a loader worker; the machine may be short of memory" in log
    assert "is killed by signal: Killed" in log
    assert 'pretrain.py", line' not in log


@slow
def test_a_silent_rank_ends_the_run_after_the_time_out(start):
    run = start("--launch.timeout", "20")
    run.wait_for("step 8 ")
    silent, other = run.rank(1), run.rank(0)
    silent.suspend()
    other.wait(60)
    log = run.end(60)
    assert "error: rank 0 has lost another process" in log
    assert not silent.is_running()


@slow
@pytest.mark.parametrize(
    ("to", "number"), [("rank 1", signal.SIGUSR1), ("launcher", signal.SIGTERM), ("terminal", signal.SIGINT)]
)
def test_a_signal_gives_a_checkpoint_on_all_ranks_and_the_run_goes_on_from_there(start, tmp_path, to, number):
    run = start()
    run.wait_for("step 8 ")
    if to == "terminal":
        os.killpg(run.launcher.pid, number)
    else:
        (run.rank(1) if to == "rank 1" else psutil.Process(run.launcher.pid)).send_signal(number)
    log = run.end(60)
    [line] = [line for line in log.splitlines() if line.startswith("stopped by a signal after step ")]
    step = int(line.split("step ")[1].split(";")[0])
    assert (run.folder / f"checkpoints/step-{step:08d}/manifest.json").exists()
    if to == "rank 1":
        assert "exitcode: 75" in log
    assert the_run().info.status == "KILLED"
    if to == "launcher":
        again = start("--resume", "auto")
        again.wait_for(f"resumed after step {step} ")
        again.wait_for(f"step {4 * (step // 4) + 8} ")
        assert the_run().info.status == "RUNNING"


@pytest.mark.matrix
def test_processes_whose_launcher_dies_save_a_checkpoint_and_end(start):
    run = start()
    run.wait_for("step 8 ")
    ranks = run.rank(0), run.rank(1)
    run.launcher.kill()
    for rank in ranks:
        rank.wait(60)
    run.launcher.wait()
    assert "stopped by a signal after step " in run.log.read_text()
    assert the_run().info.status == "KILLED"


@pytest.fixture
def server(tmp_path):
    """An MLflow server that is up."""
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def outage(start, server, seconds):
    """Two processes train while their server is away for some seconds; returns the seconds a step before, meanwhile."""
    # Steps slow enough to be told apart from the noise, and no evaluation, which would be in some of them only.
    quiet = ("--evaluation.every", "100000", "--checkpoint.every", "100000", "--tracking.log_every", "1")
    run = start(*quiet, "--training.global_batch", "100", uri=server.uri)
    run.wait_for("run folder")
    wait_for_steps(run.folder, 20)
    server.kill()
    away_from = steps_done(run.folder)
    time.sleep(seconds)
    wait_for_steps(run.folder, away_from + 6)
    away_to = steps_done(run.folder)
    server.start()
    wait_for_steps(run.folder, steps_done(run.folder) + 20)
    run.launcher.send_signal(signal.SIGTERM)
    run.end(60)
    return run, away_from, away_to


def steps_done(folder):
    journal = folder / "tracking.jsonl"
    return journal.read_text().count('"train/loss"') if journal.exists() else 0


def wait_for_steps(folder, number):
    end = time.monotonic() + 120
    while steps_done(folder) < number:
        assert time.monotonic() < end
        time.sleep(0.1)


def check_nothing_lost(run, away_from, away_to):
    log = run.log.read_text()
    assert "does not answer: training continues" in log
    assert "answers again" in log
    losses = history("train/loss")
    assert sorted(losses) == list(range(1, max(losses) + 1))
    assert away_to > away_from + 5
    points = mlflow.MlflowClient().get_metric_history(the_run().info.run_id, "train/loss")
    assert len(points) == len(losses)
    assert the_run().info.status == "KILLED"


@slow
def test_training_goes_on_without_the_tracking_server_and_nothing_is_lost(start, server):
    check_nothing_lost(*outage(start, server, seconds=6))


@pytest.mark.matrix
def test_a_minute_without_the_tracking_server_leaves_the_step_times_as_they_are(start, server, capsys):
    run, away_from, away_to = outage(start, server, seconds=60)
    check_nothing_lost(run, away_from, away_to)
    seconds = history("usage/seconds_per_step")
    with_server = sorted(value for step, value in seconds.items() if 5 < step < away_from)
    without = sorted(value for step, value in seconds.items() if away_from < step < away_to)
    for name, values in (("with the server", with_server), ("without", without)):
        middle, slow = values[len(values) // 2], values[int(0.95 * len(values))]
        with capsys.disabled():
            print(f"\n{len(values)} steps {name}: median {middle * 1e3:.1f} ms, 95th percentile {slow * 1e3:.1f} ms")
    # A blocked call would show as a step of seconds.
    assert max(without) < 2 * max(with_server) + 1
