"""Recipes: YAML files of settings, which extend one another, and their variants."""

from pathlib import Path
from typing import Any

import yaml

from cmgems.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
VARIANTS = RECIPES / "variants"
DEMO_RECIPE = "demo"
_LARGEST = 100_000  # values in a file; aliases of aliases can stand for any number


def read_named_recipe(name: str) -> dict[str, Any]:
    """Return the values of a recipe, given as a file or by the name of one that ships with cmgems; `RECIPE+VARIANT` is
    a recipe with a few settings replaced, by a file in `cmgems/recipes/variants`, and a name of its own.

    Raises
    ------
    UserError
        If there is no such recipe or variant, or its file cannot be read.
    """
    if Path(name).is_file():
        return read_recipe(Path(name))
    recipe, variants = name, list[str]()
    while "+" in recipe and not Path(recipe).is_file():
        recipe, _, variant = recipe.rpartition("+")
        variants.insert(0, variant)
    values = read_recipe(find_recipe(recipe))
    for variant in variants:
        path = VARIANTS / f"{variant}.yaml"
        if not path.is_file():
            raise UserError(f"--config {name}: no variant {variant}. Variants: {', '.join(variant_names())}")
        values = merge(values, read_recipe(path))
        values["name"] = f"{values.get('name', Path(recipe).stem)}-{variant}"
    return values


def find_recipe(name: str) -> Path:
    """Path of a recipe, given as a file or by the name of one in `cmgems/recipes`.

    Raises
    ------
    UserError
        If there is neither a file nor a recipe of that name.
    """
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise UserError(f"--config {name}: no such file, nor a recipe of that name. Recipes: {', '.join(recipe_names())}")


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with cmgems (files starting with _ are parts that recipes extend)."""
    return sorted(path.stem for path in RECIPES.glob("[!_]*.yaml"))


def variant_names() -> list[str]:
    """Return the names of the variants that every recipe has, as RECIPE+VARIANT."""
    return sorted(path.stem for path in VARIANTS.glob("*.yaml"))


def read_recipe(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values in a recipe file, merged over those of the file that its `extends` names (relative to it, or
    shipped).

    Raises
    ------
    UserError
        If a file is missing or no mapping, or extends itself.
    """
    if path.resolve() in extended_by:
        raise UserError(f"{path}: extends: the file extends itself, by way of {extended_by[-1]}")
    values = read_mapping(path, "a recipe is a mapping of settings")
    if "extends" not in values:
        return values
    name = str(values.pop("extends"))
    base = next((folder / name for folder in (path.parent, RECIPES) if (folder / name).is_file()), None)
    if base is None:
        raise UserError(f"{path}: extends: there is no file {name} beside it, nor among the shipped recipes")
    return merge(read_recipe(base, (*extended_by, path.resolve())), values)


def read_mapping(path: Path, expected: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises
    ------
    UserError
        If the file does not; the message says what was `expected`.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
        size = _size(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    except (ValueError, OverflowError) as error:  # a date or a number that Python does not have
        raise UserError(f"{path}: a value cannot be read: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: it is nested without end, or too deeply") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: {expected}, this is {type(values).__name__}")
    if size > _LARGEST:
        raise UserError(f"{path}: it has more than {_LARGEST:,} values, once all aliases (*) are resolved")
    return values


class _Loader(yaml.SafeLoader):
    """Reads plain values; a key that stands twice in a mapping is an error, as one of its values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice in a mapping", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _size(values: Any, so_far: int = 0) -> int:
    """Return how many values there are in mappings and lists, counted up to `_LARGEST`."""
    items = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    for item in items:
        so_far = _size(item, so_far + 1)
        if so_far > _LARGEST:
            break
    return so_far


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, group by group; lists are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        both_groups = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_groups else value
    return merged
