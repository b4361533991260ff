"""Folders as Hugging Face's libraries write them, and their names on the hub, found in the local cache.

Nothing here reaches for the network: what is not on this machine is named, with the command that fetches it.
The libraries map safetensors files privately, so weights that they neither cast nor merge stay in the file.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from typing import Any, Final

from ..protocol.errors import LoadFailed

#: What a folder must have one of.
_CONFIG: Final = "config.json"
_MODULES: Final = "modules.json"


def find(source: str) -> str:
    """Return the path of a source: an absolute path, or a name on the hub that the local cache has.

    Raises:
        LoadFailed: it is neither.
    """
    if os.path.isabs(source):
        if not os.path.exists(source):
            raise LoadFailed(f"{source}: no such file or folder")
        return source
    hub = library("huggingface_hub", "to look for it in the local cache of the hub", source)
    try:
        return str(hub.snapshot_download(source, local_files_only=True))
    except Exception as error:
        raise LoadFailed(
            f"{source}: neither a file or folder here, nor in the local cache of the hub; if it is a name on the "
            f"hub, fetch it with: hf download {source}"
        ) from error


def load_folder(folder: str, task: str | None, dtype: str | None, kwargs: Mapping[str, Any]) -> Any:
    """Return what a folder holds: a pipeline for a task, a sentence-transformers model, or a transformers model.

    Args:
        folder: its path.
        task: what the pipeline is for, such as ``text-classification``; None for the model alone.
        dtype: torch's name for what weights are cast to as they are loaded; None for what they are.
        kwargs: what else the library's own loader is told.

    Raises:
        LoadFailed: there is no model in it, or a library is missing.
        Exception: whatever the library raises.
    """
    names = os.listdir(folder)
    if task is None and _MODULES in names:
        return _sentence_transformer(folder, dtype, kwargs)
    if _CONFIG not in names:
        raise LoadFailed(
            f"{folder}: no model in this folder; a transformers model has a {_CONFIG}, a sentence-transformers "
            f"model a {_MODULES}. For weights alone, give the class that they are for as source and the "
            "folder as weights"
        )
    transformers = library("transformers", "to load this folder", folder)
    options = {"local_files_only": True, **({} if dtype is None else {"dtype": torch_dtype(dtype)}), **kwargs}
    if task is not None:
        del options["local_files_only"]  # a pipeline hands what it does not know to the model; the path is local
        return transformers.pipeline(task, model=folder, device="cpu", **options)
    return _class_of(folder, transformers).from_pretrained(folder, **options)


def library(name: str, purpose: str, where: str) -> Any:
    """Import a library that onecopy does not need for itself.

    Raises:
        LoadFailed: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        package = name.replace("_", "-")
        raise LoadFailed(f"{where}: the package {package} is needed {purpose}; pip install {package}") from None


def torch_dtype(name: str) -> Any:
    """Return torch's dtype of this name."""
    import torch

    return getattr(torch, name)


def _sentence_transformer(folder: str, dtype: str | None, kwargs: Mapping[str, Any]) -> Any:
    package = library("sentence_transformers", "to load this folder", folder)
    kind = _read_json(os.path.join(folder, "config_sentence_transformers.json")).get("model_type")
    # Older folders do not say what they hold, because there was one kind only.
    loader = getattr(package, kind if isinstance(kind, str) else "SentenceTransformer", None)
    if loader is None:
        raise LoadFailed(
            f"{folder}: this version of sentence-transformers has no {kind!r}, which the folder holds"
        )
    options = dict(kwargs)
    if dtype is not None:
        options["model_kwargs"] = {"dtype": torch_dtype(dtype), **options.get("model_kwargs", {})}
    return loader(folder, **{"device": "cpu", "local_files_only": True, **options})


def _class_of(folder: str, transformers: Any) -> Any:
    """Return the class that a config names, or the one that transformers has for its kind of model."""
    config = _read_json(os.path.join(folder, _CONFIG))
    architectures = config.get("architectures") or []
    for name in architectures:
        if isinstance(name, str) and (found := getattr(transformers, name, None)) is not None:
            return found
    if architectures and not config.get("auto_map"):
        raise LoadFailed(
            f"{folder}: transformers {transformers.__version__} has none of {architectures}, which its "
            f"{_CONFIG} names"
        )
    # A class of the folder's own, which transformers runs only if told trust_remote_code, or none named.
    return transformers.AutoModel


def _read_json(path: str) -> dict[str, Any]:
    """Return a JSON object, empty if there is no such file.

    Raises:
        LoadFailed: the file holds something else.
    """
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(document, dict):
        raise LoadFailed(f"{path}: must hold an object, not a {type(document).__name__}")
    return document
