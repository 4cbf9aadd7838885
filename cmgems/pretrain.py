"""Pretrain a DNA language model: `accelerate launch cmgems/pretrain.py [--config RECIPE] [--SETTING VALUE ...]`."""

import sys

from cmgems.config.command_line import load_config
from cmgems.config.schema import PretrainConfig
from cmgems.errors import end_process, exit_on_user_error, note_exit_code


def pretrain(config: PretrainConfig) -> None:
    """One process's part of the run that `config` describes."""
    # Imported here, so that --help and mistakes in settings need not wait for torch.
    from cmgems.curriculum.controller import Controller
    from cmgems.data.loader import Windows
    from cmgems.masking.masker import Masker
    from cmgems.model.bert import build_model, build_optimizer
    from cmgems.tracking import run as tracking
    from cmgems.training import engine, launch, resume, run_folder, setup
    from cmgems.training import environment as startup
    from cmgems.training.checkpoint import load_checkpoint
    from cmgems.training.display import summarise
    from cmgems.training.progress import Progress
    from cmgems.training.trainer import Trainer
    from cmgems.training.validation import Validation, unigram_perplexity

    startup.prepare_cpu_memory()
    run_folder.check_run_folder(config)
    output = config.output or run_folder.RUNS / config.name
    startup.preflight(output, config.tracking.uri, needs_tracking=run_folder.is_new_run(config))
    corpus = setup.open_corpus(config.corpus)
    table = setup.open_npmi(config.npmi, corpus)
    setup.check_model_fits(config.model, corpus)

    accelerator, plan = launch.start_accelerator(config)
    accelerator.print(startup.report(accelerator.state, launch.describe_kind(accelerator)))
    startup.check_all_have(
        accelerator.state, run_folder.shared_settings(config, corpus, table), "the same recipe and data"
    )
    training_windows, validation_windows = (
        Windows(split, corpus.k, config.model.max_positions) for split in (corpus.train, corpus.validation)
    )
    masker, validation_masker = (
        Masker(table, config.curriculum.corruption, seed, accelerator.device)
        for seed in (config.seed, config.evaluation.seed)
    )
    validation = Validation(validation_windows, config.evaluation, validation_masker, corpus.counts, accelerator)
    controller = Controller(
        config.curriculum,
        config.training.steps,
        unigram_perplexity(corpus.counts),
        broadcast=launch.broadcaster(accelerator),
        is_decider=accelerator.is_main_process,
    )
    progress = Progress()

    with run_folder.agree_on_folder(config, accelerator) as (folder, checkpoint, lock):
        identity = run_folder.run_identity(config, corpus, table, launch.launched_as(accelerator))
        environment = startup.environment(accelerator.state)
        resumed = resume.open_checkpoint(accelerator, checkpoint, identity, environment, config.allow_changed)
        model = build_model(config.model, corpus.k, config.seed)
        optimizer = build_optimizer(model, config.optimizer)
        universal = resumed is not None and resumed.universal
        model, optimizer = engine.prepare(accelerator, model, optimizer, config, plan, universal)
        description = launch.describe(accelerator, plan, model)
        accelerator.print(f"{description}\n{setup.describe(corpus, table)}\nrun folder {folder}")
        if resumed:
            load_checkpoint(accelerator, model, optimizer, resumed.weights)
            controller.load_state_dict(resumed.state.curriculum)
            progress = Progress(**resumed.state.progress)
            accelerator.print(resumed.describe(plan))

        name = run_folder.run_name(config, folder)
        run_id = resumed.state.mlflow_run if resumed else None
        exactly = resumed is None or resumed.is_exact(plan)
        is_main = accelerator.is_main_process
        with tracking.open_run(config, name, corpus, run_id, is_main, folder, exactly, lock) as tracker:
            tracker.tags({"launch": description, "folder": folder.resolve()})
            if resumed and is_main:
                tracker.tags(resumed.tags(plan))
                resume.archive_newer_checkpoints(resumed.checkpoint)
            trainer = Trainer(
                config=config,
                accelerator=accelerator,
                plan=plan,
                model=model,
                optimizer=optimizer,
                windows=training_windows,
                masker=masker,
                controller=controller,
                validation=validation,
                tracker=tracker,
                folder=folder,
                identity=identity,
                environment=environment,
                progress=progress,
            )
            trainer.run()
            note_exit_code(0)  # it need not be started again, whatever happens to what is left to do
            summary = summarise(config, name, controller, progress, folder)
            tracker.note(summary)
        accelerator.print(summary)
    accelerator.end_training()


if __name__ == "__main__":
    with exit_on_user_error():
        pretrain(load_config(sys.argv[1:]))
        end_process(0)
