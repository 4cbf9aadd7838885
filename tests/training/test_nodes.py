"""Two machines: two network namespaces with a cable between them, a launcher in each."""

import os
import shutil
import subprocess
import uuid

import mlflow
import pytest

from cmgems.data.corpus import load_corpus
from cmgems.data.prepare import prepare_corpus
from cmgems.data.settings import PrepareConfig
from tests.training.golden import GOLDEN_LOSSES
from tests.training.launching import ENVIRONMENT, REPOSITORY, command, history

slow = pytest.mark.slow
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def machines():
    """Names of two network namespaces, each with an interface `cable`."""
    names = [f"cmgems-{uuid.uuid4().hex[:6]}-{number}" for number in range(2)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


def start(machine, rank, config, settings, before=()):
    """Start the launcher of one machine."""
    several = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
    several += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29511"]
    launcher = ["--config_file", f"deepspeed_configs/{config}.yaml", *several]
    return subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{machine}", *before, *command(launcher, *settings)],
        cwd=REPOSITORY,
        # The name of the network interface, which gloo would otherwise look for under the machine's name.
        env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "cable"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def settings(tiny_recipe, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    (tmp_path / "runs").mkdir()
    return ["--config", str(tiny_recipe), "--tracking.uri", uri, "--output", str(tmp_path / "runs/1")]


def finish(processes):
    """Output and errors of each launcher."""
    try:
        return [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    "config",
    [pytest.param("zero2_multinode", marks=slow), pytest.param("ddp_multinode", marks=pytest.mark.matrix)],
)
def test_two_machines_train_as_one(machines, settings, config):
    required = ["--launch.processes", "2", "--launch.distributed", config.split("_")[0].replace("zero2", "deepspeed")]
    launchers = [start(machine, rank, config, [*settings, *required]) for rank, machine in enumerate(machines)]
    printed = finish(launchers)
    assert [launcher.returncode for launcher in launchers] == [0, 0], printed
    assert history("train/loss") == pytest.approx(GOLDEN_LOSSES, rel=1e-4)
    for rank, (_, errors) in enumerate(printed):
        assert f"rank {rank}: stage 'global' masks from step 8 on" in errors


@slow
def test_a_run_folder_that_the_machines_do_not_share_is_an_error(machines, settings, tmp_path):
    own = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path}/runs && exec "$@"', "sh")
    launchers = [
        start(machines[0], 0, "zero2_multinode", settings),
        start(machines[1], 1, "zero2_multinode", settings, before=own),
    ]
    printed = finish(launchers)
    assert all(launcher.returncode for launcher in launchers)
    for _, errors in printed:
        assert errors.count("it has to be on a file system that all machines share") == 1


@slow
def test_machines_with_another_corpus_or_other_settings_are_refused(
    machines, settings, tiny_genome, tiny_corpus, tmp_path
):
    other = PrepareConfig(inputs=[str(tiny_genome)], k=4, window_tokens=30, validation_chromosomes=["three"])
    prepare_corpus(other, tmp_path / "other", progress=False)
    own = ["--corpus.path", str(tmp_path / "other"), "--corpus.workers", "1", "--checkpoint.every", "3"]
    launchers = [
        start(machines[0], 0, "ddp_multinode", settings),
        start(machines[1], 1, "ddp_multinode", [*settings, *own]),
    ]
    printed = finish(launchers)
    assert all(launcher.returncode for launcher in launchers)
    here, there = tiny_corpus.fingerprint, load_corpus(tmp_path / "other").fingerprint
    for _, errors in printed:
        [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert "rank 1 on " in line
        assert f"has checkpoint.every 3 instead of 4, corpus {there} instead of {here}, npmi " in line
        assert line.endswith("all machines need the same recipe and data")
    assert not (tmp_path / "runs/1").exists()
