"""Settings from the command line: any setting of a recipe by its dotted name, and those of the other commands.

Neither torch nor transformers is imported: invalid settings are reported before either is loaded.
"""

import argparse
import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

from cmgems.config.arguments import (
    Parser,
    PlainSource,
    did_you_mean,
    is_list_of_words,
    prepared,
    repeated,
    require_known,
    subcommands_of,
)
from cmgems.config.recipes import DEMO_RECIPE, merge, read_named_recipe, recipe_names, variant_names
from cmgems.config.schema import PretrainConfig
from cmgems.curriculum.settings import StageConfig
from cmgems.curriculum.triggers import Trigger
from cmgems.errors import UserError
from cmgems.masking.strategies import STRATEGIES
from cmgems.settings import Settings

logger = logging.getLogger(__name__)

COMMAND = SettingsConfigDict(
    cli_exit_on_error=False, cli_avoid_json=True, cli_hide_none_type=True, cli_implicit_flags=True
)
"""How commands read their settings."""

S = TypeVar("S", bound=BaseModel)

DEPRECATED = {"--floors": "--baselines", "--no-floors": "--no-baselines"}
"""Options that have another name now, and are taken for one release."""


class _CommandLine(PretrainConfig, BaseSettings):  # type: ignore[misc]  # both are pydantic models
    """Pretrain a DNA language model. Every setting of the recipe can be given here, by its dotted name."""

    config: str = DEMO_RECIPE
    """Recipe: a YAML file, the name of one that ships with cmgems, or either with a variant, as in `demo+VARIANT`."""


def load_config(arguments: list[str], program: str = "pretrain.py") -> PretrainConfig:
    """Read the recipe that `--config` names, and the overrides, from command-line arguments. `--help` prints all
    settings and exits.

    Raises
    ------
    UserError
        Naming the setting that is wrong.
    """
    in_lists, rest = _split_off_list_overrides(arguments)
    overrides = _parse_command_line(rest, program)
    recipe = overrides.pop("config", DEMO_RECIPE)
    values = merge(read_named_recipe(recipe), overrides)
    for name, value in in_lists:
        _set_in_list(values, name, value)
    return _of_recipe(recipe, values)


def read_config(recipe: str, settings: dict[str, Any]) -> PretrainConfig:
    """Return a recipe, given as to `--config`, with some settings replaced: a dict for each section, or a value.

    Raises
    ------
    UserError
        Naming the setting that is wrong.
    """
    return _of_recipe(recipe, merge(read_named_recipe(recipe), settings))


def _of_recipe(recipe: str, values: dict[str, Any]) -> PretrainConfig:
    try:
        return validated(values, PretrainConfig)
    except UserError as error:
        raise UserError(f"{Path(recipe).name}: {error}") from None


def validated(values: dict[str, Any], model: type[S]) -> S:
    """Return the settings that `values` describe.

    Raises
    ------
    UserError
        Naming the setting that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, model)) from None


def run_command(command: type[BaseSettings], arguments: list[str]) -> None:
    """Read the settings of a command from its arguments, and call its `cli_cmd`.

    `--a-name` is the same as `--a_name`, and `--k` the same as `-k`. A list is given as `a b` or `a,b`; before the
    positional arguments, only as the latter. A deprecated option is taken for its new name, with a warning. `--help`
    prints all settings and exits; so does a command with subcommands that is given none, as an error.

    Raises
    ------
    UserError
        Naming the setting that is wrong.
    """
    program = str(command.model_config.get("cli_prog_name"))
    parser = Parser(prog=program, description=inspect.getdoc(command), allow_abbrev=False)
    words = [_renamed(_underscored(argument)) for argument in arguments]
    subcommands = subcommands_of(command)
    try:
        if subcommands and words and not words[0].startswith("-"):
            if words[0] not in subcommands:
                raise UserError(f"{words[0]}: {program} has no such subcommand{did_you_mean(words[0], subcommands)}")
            words[1:] = prepared(words[1:], subcommands[words[0]])
        elif not subcommands:
            words = prepared(words, command)
        source = PlainSource(command, root_parser=parser)
        if subcommands and not words:
            parser.exit(UserError.exit_code, parser.format_help())
        CliApp.run(command, cli_args=words, cli_settings_source=source)
    except SettingsError as error:
        raise UserError(f"command line: {error}") from None
    except ValidationError as error:
        raise UserError(describe_validation_error(error, command)) from None


def _underscored(argument: str) -> str:
    option, separator, value = argument.partition("=")
    start = next((start for start in ("--no-", "--") if option.startswith(start)), option)
    return start + option.removeprefix(start).replace("-", "_") + separator + value


def _renamed(argument: str) -> str:
    option, separator, value = argument.partition("=")
    if option not in DEPRECATED:
        return argument
    logger.warning(f"{option} is deprecated, and is {DEPRECATED[option]} now")
    return DEPRECATED[option] + separator + value


def describe_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line per error: the setting's dotted name, what is wrong, and what it was."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown setting{did_you_mean(where, dict(_settings(model)))}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing, and it has no default")
        elif problem["type"] == "value_error":
            lines.append((f"{where}: " if where else "") + str(problem["ctx"]["error"]))
        else:
            lines.append(f"{where}: {problem['msg']} (it is {problem['input']!r})")
    return "\n  ".join(lines)


def _split_off_list_overrides(arguments: list[str]) -> tuple[list[tuple[str, Any]], list[str]]:
    """Overrides of settings inside lists, such as `--curriculum.stages.0.until.below 5`, and the other arguments."""
    found: list[tuple[str, Any]] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, separator, value = argument.partition("=")
        if not re.fullmatch(r"--\w+(\.\w+)*\.\d+(\.\w+)*", name):
            rest.append(argument)
            continue
        text = value if separator else next(remaining, None)
        if text is None:
            raise UserError(f"{name}: a value is missing")
        try:
            found.append((name, yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise UserError(f"{name}: {text!r} cannot be read as a value: {error}") from None
    return found, rest


def _set_in_list(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the value that a dotted name with list places in it stands for."""
    *parents, last = name.removeprefix("--").split(".")
    place: Any = values
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{name}: the recipe has no such place") from None


def _parse_command_line(arguments: list[str], program: str) -> dict[str, Any]:
    parser = Parser(
        prog=program,
        usage=f"{program} [--config RECIPE] [--SETTING VALUE ...]",
        description=_CommandLine.__doc__,
        epilog=_help_on_stages()
        + "\n\nRecipes: "
        + ", ".join(recipe_names())
        + "\nVariants (RECIPE+VARIANT): "
        + ", ".join(variant_names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    settings = {f"--{name}": field for name, field in _settings(PretrainConfig)}
    require_known(arguments, {"--config", "--help", "--version", *settings}, "setting")
    lists = {name for name, field in settings.items() if is_list_of_words(field)}
    try:
        source = PlainSource(
            _CommandLine,
            cli_parse_args=repeated(arguments, lists),
            root_parser=parser,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_parse_none_str="null",
            cli_exit_on_error=False,
        )
        return source()
    except SettingsError as error:
        raise UserError(f"command line: {error}") from None


def _help_on_stages() -> str:
    """Return the settings inside a stage, which stand in lists: pydantic-settings shows the list only."""
    lines = ["inside a stage (N counts stages, M the maskings of a mix, from 0):"]
    groups: list[tuple[str, type[BaseModel]]] = [("N", StageConfig)]
    groups += [("N.masking.M", strategy) for strategy in STRATEGIES.values()]
    groups += [("N.until", trigger) for trigger in get_args(get_args(Trigger)[0])]
    for where, group in groups:
        for name, field in group.model_fields.items():
            if (group, name) in ((StageConfig, "masking"), (StageConfig, "until")):
                continue
            choices = f" {{{','.join(get_args(field.annotation))}}}" if get_origin(field.annotation) is Literal else ""
            lines.append(f"  --curriculum.stages.{where}.{name}{choices}\n      {field.description}")
    return "\n".join(lines)


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and the field of each setting of a model; a list of groups counts as one setting."""
    for name, field in model.model_fields.items():
        group = _group(field.annotation)
        if group is None:
            yield prefix + name, field
        else:
            yield from _settings(group, f"{prefix}{name}.")


def _group(annotation: Any) -> type[Settings] | None:
    """Return the group of settings that an annotation such as `Group` or `Group | None` names."""
    alternatives = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((t for t in alternatives if isinstance(t, type) and issubclass(t, Settings)), None)
