"""slurm/pretrain.sh under a real SLURM with two nodes."""

import re
import time
from contextlib import suppress

import mlflow
import pytest

from tests.training.golden import GOLDEN_LOSSES
from tests.training.launching import ZERO2, history, launch, logged, the_run
from tests.training.slurm_job import Job

slow = pytest.mark.slow
matrix = pytest.mark.matrix

ON_TWO_NODES = ("--launch.distributed", "deepspeed", "--launch.zero_stage", "2", "--launch.processes", "2")
# Long enough to be hit on its way. Each step is logged by itself: an interruption would cut a mean over several in two.
LONG = (
    *("--training.steps", "150", "--training.global_batch", "50", "--curriculum.stages.0.until.at", "80"),
    *("--tracking.log_every", "1", "--evaluation.every", "50", "--checkpoint.every", "25"),
    *("--checkpoint.milestones", "[]"),
)
HIT = 40
"""The step that has been seen when something happens to the job."""


@pytest.fixture
def submit(slurm, tiny_recipe, tmp_path):
    """Function that submits slurm/pretrain.sh with the tiny recipe, settings and options of sbatch."""
    jobs = []

    def begin(*overrides, options=(), environment=None, cluster=slurm, recipe=tiny_recipe, folder=tmp_path):
        uri = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(uri)
        jobs.append(Job(cluster, recipe, folder, uri, overrides, options, environment or {}))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.cluster.run("scancel", job.number)


@pytest.fixture(scope="module")
def in_containers(image, tmp_path_factory):
    """Variables of a job that runs in containers of the image. The nodes' own path leads to no accelerate."""
    program = image.command_in_jobs(tmp_path_factory.getbasetemp())
    return {"ACTIVATE": "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINER": str(program)}


@matrix
def test_a_job_on_two_nodes_trains_as_one_in_containers(submit, in_containers):
    job = submit(*ON_TWO_NODES, environment=in_containers)
    done = job.end()
    assert (done["NodeList"], done["Restarts"]) == ("node[1-2]", "0")
    for rank, node in enumerate(("node1", "node2")):
        assert f"\n{node}: rank {rank} on cpu" in job.node_log("node1")
        assert f"rank {rank}: stage 'global' masks from step 8 on" in job.node_log(node)
    assert "deepspeed ZeRO-2, 2 process(es)" in job.node_log("node1")
    assert history("train/loss") == pytest.approx(GOLDEN_LOSSES, rel=1e-4)
    assert the_run().info.status == "FINISHED"


@matrix
@pytest.mark.parametrize("variables", [{"ADDRESS_SUFFIX": "-ib"}, {"ADDRESS": "10.66.0.11"}])
def test_nodes_meet_at_another_name_than_slurms(submit, variables):
    job = submit(*ON_TWO_NODES, environment=variables)
    job.wait_for_log(f"the nodes meet at {variables.get('ADDRESS', 'node1-ib')}")
    job.end()
    assert history("train/loss") == pytest.approx(GOLDEN_LOSSES, rel=1e-4)


@pytest.fixture(scope="module")
def undisturbed(tiny_recipe, tmp_path_factory):
    """Losses of the long run in two processes that nothing happens to, by step."""
    folder = tmp_path_factory.mktemp("undisturbed")
    uri = f"sqlite:///{folder}/mlflow.db"
    settings = ("--config", str(tiny_recipe), "--tracking.uri", uri, "--output", str(folder / "run"), *LONG)
    finished = launch(ZERO2, *settings)
    assert finished.returncode == 0, finished.stderr
    return logged(folder / "run", "train/loss")


@pytest.fixture
def hit_on_its_way(submit, undisturbed, capsys):
    """Function that has something happen to a job, waits for the end of its processes, and then for the job's: it has
    to be started twice and to end well, with the losses of a run that nothing happened to. Returns the job, and the
    steps that it lost."""

    def check(happen, seen_in_log, options=()):
        job = submit(*LONG, options=options)
        job.wait_for_step(HIT)
        hit = time.monotonic()
        happen(job)
        job.wait_until_ended()
        seconds, step = time.monotonic() - hit, job.steps_done()
        assert step < 150, "hit too late"
        done = job.end()
        assert done["Restarts"] == "1", job.everything()
        assert logged(job.folder, "train/loss") == pytest.approx(undisturbed, rel=1e-4)
        assert the_run().info.status == "FINISHED"
        log = job.log.read_text()
        assert seen_in_log in log, log
        assert "done: the training has reached its last step" in log
        [resumed] = map(int, re.findall(r"resumed after step (\d+) ", job.node_log("node1", 1)))
        with capsys.disabled():
            print(f"\n{seen_in_log}: no process left after {seconds:.1f} s, {step - resumed} of {step} steps lost")
            print(log)
        return job, step - resumed

    return check


def signal(job):
    """What `--signal` sends ahead of the time limit."""
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.number)


@matrix
def test_after_a_signal_the_job_goes_on_where_it_was(hit_on_its_way):
    job, lost = hit_on_its_way(signal, "stopped by a signal: the job returns to the queue")
    assert lost == 0
    assert re.search(r"stopped by a signal after step \d+;", job.node_log("node1"))


@matrix
def test_after_a_signal_a_job_of_an_array_goes_on_where_it_was(hit_on_its_way):
    _, lost = hit_on_its_way(signal, "stopped by a signal: the job returns to the queue", options=["--array=7"])
    assert lost == 0


@matrix
def test_a_job_over_codons_goes_on_where_it_was(submit, tmp_path):
    settings = (
        *("--corpus.path", str(tmp_path / "corpus"), "--training.steps", "60", "--tracking.log_every", "1"),
        *("--evaluation.every", "20", "--evaluation.windows", "50", "--optimizer.warmup_steps", "10"),
        *("--curriculum.stages.0.until", '{"kind": "step", "at": 40}'),
    )
    undisturbed = submit(*settings, recipe="codons-cm-gems-15", folder=tmp_path / "undisturbed")
    undisturbed.end(seconds=600)
    job = submit(*settings, recipe="codons-cm-gems-15", folder=tmp_path / "hit")
    job.wait_for_step(25)
    signal(job)
    done = job.end(seconds=600)
    assert (done["NodeList"], done["Restarts"]) == ("node[1-2]", "1")
    assert "bits per hidden codon: span" in job.node_log("node1", 1)
    assert logged(job.folder, "train/loss") == pytest.approx(logged(undisturbed.folder, "train/loss"), rel=1e-6)
    assert set(logged(job.folder, "codon_bits/span")) == {20, 40, 60}


@matrix
def test_a_killed_rank_ends_the_job_which_goes_on(hit_on_its_way):
    def kill(job):
        [rank] = job.cluster.processes(job.number, 1)
        rank.kill()

    hit_on_its_way(kill, "a process or a node has failed")


@matrix
def test_a_job_that_a_more_urgent_one_displaces_goes_on_after_it(hit_on_its_way):
    def displace(job):
        job.cluster.run(
            "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"
        )

    _, lost = hit_on_its_way(displace, "stopped by a signal: the job returns to the queue")
    assert lost == 0


@matrix
def test_a_job_goes_on_when_a_node_is_back(hit_on_its_way, slurm):
    def lose_a_node(job):
        slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
        job.wait_until_ended()
        with suppress(AssertionError):  # it may have come back by itself
            slurm.run("scontrol", "update", "nodename=node2", "state=resume")

    hit_on_its_way(lose_a_node, "restart 1: on node[1-2]")


@matrix
def test_a_job_goes_on_after_a_crash_of_a_node(hit_on_its_way, slurm):
    def crash(job):
        slurm.crash("node2")
        job.wait_until_ended()
        time.sleep(5)
        slurm.start_node("node2")

    hit_on_its_way(crash, "restart 1: on node[1-2]")


@matrix
def test_slurm_sends_the_signal_ahead_of_the_time_limit_and_a_file_stops_the_job(submit):
    # SLURM looks twice a minute which jobs are to be signalled, and rounds in favour of early.
    job = submit("--training.steps", "100000", options=("--time=3", "--signal=B:USR1@60"))
    job.wait_for_log("stopped by a signal: the job returns to the queue", seconds=180)
    job.wait_for_log("restart 1: on node[1-2]")
    stopped = job.steps_done()
    job.wait_for_step(stopped + 20)
    (job.folder / "stop").touch()
    assert job.end()["Restarts"] == "1"
    assert f"remove {job.folder}/stop and submit with OUTPUT={job.folder} to continue" in job.log.read_text()
    assert the_run().info.status == "KILLED"


@slow
def test_a_mistake_is_not_tried_again(submit):
    job = submit("--training.stepz", "5")
    assert job.end("FAILED")["ExitCode"] == "2:0"
    assert "training.stepz" in job.node_log("node1")
    assert "ended by invalid settings or data" in job.log.read_text()


@matrix
def test_after_the_last_step_nothing_starts_a_job_again(submit):
    job = submit()
    done = job.folder / f"logs/{job.number}/exit-codes-0/rank-0"
    while not done.exists():
        time.sleep(0.02)
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.end()["Restarts"] == "0"
    job.cluster.run("scontrol", "requeue", job.number)
    job.wait_for_log("nothing left to do: an earlier start has reached the last step")
    assert job.end()["Restarts"] == "1"


@matrix
def test_a_cancelled_job_is_not_started_again(submit):
    job = submit(*LONG)
    job.wait_for_step(10)
    job.cluster.run("scancel", job.number)
    assert job.end("CANCELLED")["Restarts"] == "0"
    time.sleep(10)
    assert job.end("CANCELLED")["Restarts"] == "0"


@matrix
def test_a_job_that_gets_nowhere_is_given_up(submit):
    job = submit(environment={"ACTIVATE": "exit 1"})
    assert job.end("FAILED")["Restarts"] == "2"
    assert "for the third time without a newer checkpoint than none" in job.log.read_text()


@slow
@pytest.mark.parametrize(
    ("limit", "file", "state", "said"),
    [("0", None, "FAILED", "given up: "), ("50", "stop", "COMPLETED", "not started: there is ")],
)
def test_a_bound_and_a_file_keep_a_job_from_starting(submit, tmp_path, limit, file, state, said):
    if file:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / file).touch()
    job = submit(environment={"MAX_RESTARTS": limit, "ACTIVATE": "exit 1"})
    assert job.end(state)["Restarts"] == "0"
    assert said in job.log.read_text()
