"""Fine-tune a model on one task: `accelerate launch cmgems/finetune.py --task TASK --data FOLDER --model MODEL`."""

import logging
import sys

from pydantic_settings import BaseSettings, SettingsConfigDict

import cmgems.tracking  # noqa: F401  # before MLflow is imported, which reads its variables then
from cmgems.config.command_line import COMMAND, run_command
from cmgems.downstream.settings import FinetuneConfig
from cmgems.runtime.logging import configure_logging
from cmgems.runtime.process import end_process, exit_on_error
from cmgems.runtime.signals import SAME_COMMAND, stopping_on_signals

logger = logging.getLogger("cmgems.finetune")  # of the module also where it is run as a script


def finetune(config: FinetuneConfig) -> None:
    """Run one process's part of the fine-tuning that `config` describes."""
    # Imported here, so that --help and invalid settings need not wait for torch.
    from cmgems.downstream.data import read_task
    from cmgems.downstream.experiment import find_or_compute
    from cmgems.downstream.finetuning import start_processes
    from cmgems.downstream.setup import open_scoring
    from cmgems.downstream.subjects import random_weights
    from cmgems.model.cpu import prepare_cpu_memory
    from cmgems.training import environment

    prepare_cpu_memory()
    scoring = open_scoring(config, [config.task])
    scoring.preflight()
    [task] = scoring.tasks
    data = read_task(task, config.data, config.resplit)

    state = start_processes()
    logger.info(environment.report(state, "none" if state.num_processes == 1 else "ddp"))
    subject = random_weights(scoring.model.source) if config.random_weights else scoring.model
    experiment = scoring.experiment(task, subject, config.seed)
    folder = experiment.folder(scoring.folder)
    result, is_new = find_or_compute(experiment, data, folder, config.save_model)
    if state.is_main_process:
        publisher = scoring.publisher()
        publisher.publish(result)
        publisher.finish()
        print(f"{experiment.title}, {'scored' if is_new else 'there already'}: {result.summary}\n{folder}")
    state.destroy_process_group()


class Finetune(FinetuneConfig, BaseSettings):
    """Fine-tune a model on one downstream task, score it on the task's test split, and log the scores to MLflow."""

    model_config = SettingsConfigDict(**COMMAND, cli_prog_name="finetune.py")

    def cli_cmd(self) -> None:
        """Run."""
        finetune(FinetuneConfig(**self.model_dump()))


if __name__ == "__main__":
    configure_logging()
    with stopping_on_signals(SAME_COMMAND), exit_on_error():
        run_command(Finetune, sys.argv[1:])
        end_process(0)
