"""Pretrain a DNA language model: `accelerate launch cmgems/pretrain.py [--config RECIPE] [--SETTING VALUE ...]`."""

import logging
import sys
from pathlib import Path

from cmgems.config.command_line import load_config
from cmgems.config.schema import PretrainConfig
from cmgems.runtime.logging import configure_logging
from cmgems.runtime.process import end_process, exit_on_error, note_exit_code
from cmgems.runtime.signals import stopping_on_signals

logger = logging.getLogger("cmgems.pretrain")  # of the module also where it is run as a script


def pretrain(config: PretrainConfig) -> Path:
    """Run one process's part of the run that `config` describes; return the run's folder."""
    # Imported here, so that --help and invalid settings need not wait for torch.
    from cmgems.curriculum.controller import Controller
    from cmgems.model.cpu import prepare_cpu_memory
    from cmgems.tracking.run import open_run
    from cmgems.training import environment
    from cmgems.training.display import summarise
    from cmgems.training.engine import build_engine
    from cmgems.training.launch import broadcaster, describe_kind, on_main_process, start_accelerator
    from cmgems.training.record import write_record
    from cmgems.training.resume import archive_newer_checkpoints, open_checkpoint, run_to_track
    from cmgems.training.run_folder import check_run_folder, is_new_run, open_run_folder, output_folder, shared_settings
    from cmgems.training.setup import open_data, open_masker
    from cmgems.training.trainer import Trainer
    from cmgems.training.validation import Validation, unigram_perplexity

    prepare_cpu_memory()
    check_run_folder(config)
    environment.preflight(output_folder(config), config.tracking.uri, needs_tracking=is_new_run(config))
    data = open_data(config)

    accelerator, plan = start_accelerator(config)
    is_main = accelerator.is_main_process
    logger.info(environment.report(accelerator.state, describe_kind(accelerator)))
    environment.check_all_have(accelerator.state, shared_settings(config, data), "the same recipe and data")
    masker = open_masker(data, config, accelerator.device, config.evaluation.seed)
    validation = Validation(data.validation, config.evaluation, masker, data.corpus, accelerator)
    unigram = unigram_perplexity(data.corpus.counts)
    controller = Controller(config.curriculum, config.training.steps, unigram, broadcaster(accelerator), is_main)

    with open_run_folder(config, accelerator, data) as run:
        resumed = open_checkpoint(run, accelerator, config.allow_changed)
        on_main_process(accelerator, lambda: write_record(run.folder, config, data.corpus, run.environment))
        engine = build_engine(config, accelerator, plan, data.corpus.tokens, resumed is not None and resumed.universal)
        logger.info(f"{engine.describe()}\n{data.describe()}\nrun folder {run.folder}")
        if resumed:
            resumed.load_into(run, engine, controller)
            logger.info(resumed.describe(plan))
        with open_run(config, data.corpus, run_to_track(run, resumed, plan), is_main) as tracker:
            tracker.tags({"launch": engine.describe(), "folder": run.folder.resolve()})
            if resumed and is_main:
                tracker.tags(resumed.tags(plan))
                archive_newer_checkpoints(resumed.checkpoint)
            Trainer(config, engine, data, validation, controller, run, tracker).train()
            note_exit_code(0)  # it need not be started again, whatever happens to what is left to do
            summary = summarise(config, controller, run)
            tracker.note(summary)
        logger.info(summary)
    accelerator.end_training()
    return run.folder


if __name__ == "__main__":
    configure_logging()
    with stopping_on_signals(), exit_on_error():
        pretrain(load_config(sys.argv[1:]))
        end_process(0)
