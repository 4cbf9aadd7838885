"""Fine-tune a model on one task: `accelerate launch cmgems/finetune.py --task TASK --data FOLDER --model MODEL`."""

import logging
import sys

from pydantic_settings import BaseSettings, SettingsConfigDict

from cmgems.config.command_line import COMMAND, run_command
from cmgems.downstream.settings import FinetuneConfig
from cmgems.runtime.logging import configure_logging
from cmgems.runtime.process import end_process, exit_on_error

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> None:
    """One process's part of the fine-tuning that `config` describes."""
    # Imported here, so that --help and mistakes in settings need not wait for torch.
    from accelerate.utils import broadcast_object_list

    from cmgems.downstream import experiment, subjects
    from cmgems.downstream.data import read_task
    from cmgems.downstream.finetuning import start_processes
    from cmgems.downstream.publish import Publisher, tracking_uri
    from cmgems.downstream.results import result_folder
    from cmgems.model.cpu import prepare_cpu_memory
    from cmgems.training import environment

    prepare_cpu_memory()
    suite, [task] = experiment.load_tasks(config, [config.task])
    model = subjects.model_subject(config)
    output = subjects.run_folder(config)
    environment.preflight(output, tracking_uri(output, config.tracking_uri), needs_tracking=False)
    model.source.check()
    experiment.make_data(suite, [task], config)
    data = read_task(task, config.data, config.resplit)

    state = start_processes()
    logger.info(environment.report(state, "none" if state.num_processes == 1 else "ddp"))
    subject = subjects.random_weights(model.source) if config.random_weights else model
    what = experiment.Experiment(suite, task, subject, config.seed, experiment.machine(config), config.protocol)
    folder = result_folder(output, suite.name, subject.name, task.name, config.seed)
    there = [experiment.existing_result(what, data, folder)]
    if config.save_model and not (folder / "model").is_dir():
        there = [None]
    broadcast_object_list(there)  # one process decides for all
    result = there[0] or experiment.run(what, data, folder, config.save_model)
    if state.is_main_process:
        publisher = Publisher(config, suite, output)
        publisher.publish(result)
        publisher.finish()
        print(f"{what.title}, {'there already' if there[0] else 'scored'}: {result.summary}\n{folder}")
    state.destroy_process_group()


class Finetune(FinetuneConfig, BaseSettings):
    """Fine-tune a model on one downstream task, score it on the task's test split, and log the scores to MLflow."""

    model_config = SettingsConfigDict(**COMMAND, cli_prog_name="finetune.py")

    def cli_cmd(self) -> None:
        """Run."""
        finetune(FinetuneConfig(**self.model_dump()))


if __name__ == "__main__":
    configure_logging()
    with exit_on_error():
        run_command(Finetune, sys.argv[1:])
        end_process(0)
