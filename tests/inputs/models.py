"""Exported models with a fault: what is done to the folder, and what the message says."""

import json
import os
import pickle
import shutil
from contextlib import contextmanager

import torch


class Harmful:
    """A pickle that makes a folder when it is read."""

    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@contextmanager
def craft(file):
    """Put a pickle that makes a folder in the place of a file, as torch writes it, for a while."""
    content = file.read_bytes()
    torch.save(Harmful(), file)
    try:
        yield
    finally:
        file.write_bytes(content)


def edit_config(**changes):
    """Return a function that changes settings in config.json; None removes one."""

    def edit(folder):
        path = folder / "config.json"
        settings = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))

    return edit


def rewrite(name, content):
    """Return a function that replaces a file."""

    def write(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def remove(name):
    """Return a function that removes a file."""
    return lambda folder: (folder / name).unlink()


def cut(name, share=0.5):
    """Return a function that cuts a file."""

    def cut_file(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return cut_file


def as_pickle(content):
    """Return a function that puts a pickle in the place of the weights."""

    def write(folder):
        (folder / "model.safetensors").unlink()
        if isinstance(content, bytes):
            (folder / "pytorch_model.bin").write_bytes(content)
        else:
            torch.save(content, folder / "pytorch_model.bin")

    return write


FAULTS = {
    "no folder": (shutil.rmtree, "cannot be loaded|no such|is not a"),
    "no config.json": (remove("config.json"), "cannot be loaded"),
    "config.json is empty": (rewrite("config.json", ""), "cannot be loaded"),
    "config.json is cut": (cut("config.json"), "cannot be loaded"),
    "config.json is a list": (rewrite("config.json", "[]"), "cannot be loaded"),
    "config.json is null": (rewrite("config.json", "null"), "cannot be loaded"),
    "config.json has no type": (rewrite("config.json", "{}"), "cannot be loaded"),
    "config.json has another type": (edit_config(model_type="no-such-model"), "cannot be loaded"),
    "config.json has another size": (edit_config(hidden_size=48), "weights are missing, or of another shape"),
    "config.json has a word for a size": (edit_config(hidden_size="many"), "cannot be loaded"),
    "config.json has a negative size": (edit_config(hidden_size=-1), "cannot be loaded"),
    "config.json has no heads": (edit_config(num_attention_heads=0), "cannot be loaded"),
    "config.json has a layer more": (edit_config(num_hidden_layers=3), "weights are missing, or of another shape"),
    "no weights": (remove("model.safetensors"), "cannot be loaded"),
    "weights are empty": (rewrite("model.safetensors", b""), "cannot be loaded"),
    "weights are cut": (cut("model.safetensors"), "cannot be loaded"),
    "weights are text": (rewrite("model.safetensors", "hello"), "cannot be loaded"),
    "weights with a header of 2^60 bytes": (rewrite("model.safetensors", b"\0" * 7 + b"\x10{}"), "cannot be loaded"),
    "weights are an LFS pointer": (
        rewrite("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "cannot be loaded",
    ),
    "weights are a pickle that does something": (as_pickle(Harmful()), "cannot be loaded"),
    "weights are a plain pickle that does something": (as_pickle(pickle.dumps(Harmful())), "cannot be loaded"),
    "weights are a list": (as_pickle([1]), "cannot be loaded|weights are missing"),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.iterdir() if "token" in path.name or "vocab" in path.name],
        "cannot be loaded|tokenizer",
    ),
    "tokenizer.json is cut": (cut("tokenizer.json"), "cannot be loaded"),
    "tokenizer.json is a list": (rewrite("tokenizer.json", "[]"), "cannot be loaded"),
    "tokenizer_config.json is cut": (cut("tokenizer_config.json"), "cannot be loaded"),
    "code of its own": (
        edit_config(auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}),
        "trust_remote_code",
    ),
}
