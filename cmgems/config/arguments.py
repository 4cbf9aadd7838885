"""The words of a command line: names of options and suggestions for them, lists, argparse, pydantic-settings."""

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliPositionalArg, CliSettingsSource, CliSubCommand

from cmgems import __version__
from cmgems.errors import UserError

_POSITIONAL = get_args(CliPositionalArg[int])[1]
_SUBCOMMAND = get_args(CliSubCommand[BaseModel])[1]  # type: ignore[misc]
_PLAIN = (str, int, float, Path)


class Parser(argparse.ArgumentParser):
    """argparse prints an error with the usage of all settings and exits; here it is a UserError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument("--version", action="version", version=f"cmgems {__version__}")

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"command line: {message}")


class PlainSource(CliSettingsSource[Any]):
    """Settings from the command line, where the words of a list are taken as they are.

    pydantic-settings looks for JSON, quotes and commas in them, which names of files may have.
    """

    def _merge_parsed_list(self, parsed_list: list[str], field_name: str) -> str:
        field = next((argument.field_info for argument in self._parser_map.get(field_name, {}).values()), None)
        if field is None or not is_list_of_words(field):
            return super()._merge_parsed_list(parsed_list, field_name)
        is_positional = _POSITIONAL in field.metadata
        return json.dumps(parsed_list if is_positional else [item for word in parsed_list for item in _items(word)])


def _items(word: str) -> list[Any]:
    """Return the items of a list that is given as one word: `a,b`, or JSON."""
    if word.startswith("["):
        try:
            return list(json.loads(word))
        except ValueError:
            pass  # a name that begins so
    return [item.strip() for item in word.split(",")]


def is_list_of_words(field: FieldInfo) -> bool:
    """Return whether a field is a list of texts, paths or numbers."""
    if get_origin(field.annotation) is not list:
        return False
    [item] = get_args(field.annotation)
    return (get_args(item)[0] if get_origin(item) is Annotated else item) in _PLAIN


def prepared(words: list[str], command: type[BaseModel]) -> list[str]:
    """Return the words of a command without subcommands, with `--x a b` as `--x a --x b`.

    Raises
    ------
    UserError
        If an option is unknown.
    """
    fields = {field.alias or name: field for name, field in command.model_fields.items()}
    options = {name: field for name, field in fields.items() if _POSITIONAL not in field.metadata}
    known = {"--help", "--version", *(f"--{name}" for name in options), *(f"--no-{name}" for name in options)}
    words = [_short(word, options) for word in words]
    require_known(words[: words.index("--") if "--" in words else None], known, "option")
    if len(options) < len(fields) and words and words[0].startswith("-"):
        return words  # what follows a list may be the positional arguments
    return repeated(words, {f"--{name}" for name, field in options.items() if is_list_of_words(field)})


def require_known(words: list[str], known: set[str], kind: str) -> None:
    """Check the names of options.

    Raises
    ------
    UserError
        Naming the first that is not among the `known` ones of this `kind`.
    """
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UserError(f"{name}: unknown {kind}{did_you_mean(name, known)}")


def repeated(words: list[str], lists: set[str]) -> list[str]:
    """Return the words with `--x a b` as `--x a --x b`, for the options `lists`."""
    result: list[str] = []
    option, is_first = "", False
    for word in words:
        if word.startswith("-") and not re.match(r"-\.?\d", word):
            option, is_first = word if word in lists else "", True
            result.append(word)
        else:
            result += [word] if is_first or not option else [option, word]
            is_first = False
    return result


def _short(word: str, options: Mapping[str, FieldInfo]) -> str:
    """Return an option of one letter with one dash."""
    return word[1:] if re.match(r"--\w(=|$)", word) and word[2] in options else word


def subcommands_of(command: type[BaseSettings]) -> dict[str, type[BaseModel]]:
    """Return the settings of each subcommand, by its name."""
    return {
        field.alias or name: next(kind for kind in get_args(field.annotation) if kind is not type(None))
        for name, field in command.model_fields.items()
        if _SUBCOMMAND in field.metadata
    }


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion in brackets; nothing if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
