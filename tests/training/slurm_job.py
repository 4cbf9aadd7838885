"""A pretraining submitted to a SLURM cluster, and what it writes."""

import time

from tests.support.slurm_cluster import ENVIRONMENT, OPTIONS
from tests.training.launching import REPOSITORY, logged


class Job:
    """A pretraining by slurm/pretrain.sh."""

    def __init__(self, cluster, recipe, folder, uri, overrides, options, environment):
        folder.mkdir(exist_ok=True)
        self.cluster, self.folder, self.log = cluster, folder / "run", folder / "job.log"
        self.number = cluster.run(
            *("sbatch", "--parsable", *OPTIONS, f"--output={self.log}", *options),
            *("slurm/pretrain.sh", recipe, "zero2", "--tracking.uri", uri, *overrides),
            cwd=REPOSITORY,
            environment={**ENVIRONMENT, "OUTPUT": str(self.folder), **environment},
        )

    def node_log(self, node, restart=0):
        """What the launcher and the processes of a node have printed."""
        path = self.folder / f"logs/{self.number}/restart-{restart}-{node}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_step(self, step):
        """Return when a step has been logged."""
        end = time.monotonic() + 120
        while self.steps_done() < step:
            assert time.monotonic() < end, self.everything()
            time.sleep(0.05)

    def wait_for_log(self, text, seconds=120):
        """Return when the script has said something."""
        end = time.monotonic() + seconds
        while not self.log.exists() or text not in self.log.read_text():
            assert time.monotonic() < end, self.everything()
            time.sleep(0.05)

    def steps_done(self):
        """The last step that has been logged."""
        return max(logged(self.folder, "train/loss"), default=0) if (self.folder / "tracking.jsonl").exists() else 0

    def wait_until_ended(self):
        """Return when none of the training processes is left."""
        end = time.monotonic() + 120
        while self.cluster.processes(self.number, 0) + self.cluster.processes(self.number, 1):
            assert time.monotonic() < end, self.everything()
            time.sleep(0.05)

    def end(self, state="COMPLETED", seconds=240):
        """Wait for the end of the job, which has to be as stated; returns what SLURM says about it."""
        try:
            job = self.cluster.wait_for(
                self.number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", seconds=seconds
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.everything()}") from None
        assert job["JobState"] == state, self.everything()
        return job

    def everything(self):
        """All that was printed."""
        files = [self.log, *sorted(self.folder.glob("logs/*/*.log"))]
        return "\n".join(f"==> {file}\n{file.read_text()}" for file in files if file.exists())
