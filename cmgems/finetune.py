"""Fine-tune a model on one task: `accelerate launch cmgems/finetune.py --task TASK --data FOLDER --model MODEL`."""

import sys

from pydantic_settings import BaseSettings, SettingsConfigDict

from cmgems.config import COMMAND, run_command
from cmgems.errors import exit_on_user_error
from cmgems.evaluation.settings import FinetuneConfig


def finetune(config: FinetuneConfig) -> None:
    """One process's part of the fine-tuning that `config` describes."""
    # Imported here, so that --help and mistakes in settings need not wait for torch.
    from cmgems.evaluation.benchmark import Publisher, machine, make_data, model_subject, run_folder
    from cmgems.evaluation.data import read_task
    from cmgems.evaluation.experiment import Experiment, existing_result, random_weights, run
    from cmgems.evaluation.finetuning import start_processes
    from cmgems.evaluation.results import result_folder
    from cmgems.evaluation.tasks import load_suite

    suite = load_suite(config.suite)
    [task] = suite.choose([config.task])
    subject = model_subject(config)
    subject.source.check()
    make_data(suite, config)
    data = read_task(task, config.data, config.resplit)

    state = start_processes()
    if config.random_weights:
        subject = random_weights(subject.source)
    experiment = Experiment(suite, task, subject, config.seed, machine(config))
    output = run_folder(config)
    folder = result_folder(output, suite.name, subject.name, task.name, config.seed)
    result = existing_result(folder, experiment.identity(data))
    is_new = result is None
    if result is None:
        result = run(experiment, data, folder, config.save_model)
    if state.is_main_process:
        publisher = Publisher(config, suite, output)
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
    with exit_on_user_error():
        run_command(Finetune, sys.argv[1:])
