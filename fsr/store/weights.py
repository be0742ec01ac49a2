"""Tensors on disk: safetensors with the digest of their content inside, written all or nothing."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fsr.files import CorruptFile, MissingRecord, UsageError, write_bytes


def digest(tensors: dict[str, Tensor], meta: str = "") -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names, and over meta."""
    total = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict | None = None) -> str:
    """Write tensors and JSON-able meta to one safetensors file; returns the digest that is stored inside."""
    # copies: safetensors refuses tied weights, which are stored once for each of their names
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(meta or {}, sort_keys=True)
    mark = digest(tensors, text)
    # one entry: several would be written in an order that changes from call to call
    write_bytes(path, save(tensors, metadata={"fsr": json.dumps({"digest": mark, "meta": text})}))
    return mark


def _info(file: Any, path: Path) -> tuple[str, str, dict]:
    """(digest, meta as text, meta) of an open checkpoint; CorruptFile for one that this version did not write."""
    text = (file.metadata() or {}).get("fsr")
    if text is None:
        advice = "read it with the version that wrote it, or move it away to train again"
        raise CorruptFile(f"{path} was not written by this version of the package (no `fsr` in its metadata); {advice}")
    try:
        info = json.loads(text)
        mark, text = info["digest"], info["meta"]
        meta = json.loads(text)
        if isinstance(mark, str) and isinstance(meta, dict):
            return mark, text, meta
    except (KeyError, TypeError):
        pass
    raise ValueError("its header is damaged")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A checkpoint's file; MissingRecord when there is none, CorruptFile when it cannot be read."""
    if not path.exists():
        raise MissingRecord(f"no such checkpoint: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        if not os.access(path, os.R_OK):
            raise CorruptFile(f"{path} cannot be read: permission denied; give yourself access") from None
        raise CorruptFile(f"{path} cannot be read ({error}); move it away to train again") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors on the CPU, meta); MissingRecord when there is none, CorruptFile when it is not what was saved."""
    with _opened(path) as file:
        mark, text, meta = _info(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if mark != digest(tensors, text):
        raise CorruptFile(f"{path} is damaged (its content does not match its digest); move it away to train again")
    return tensors, meta


def load_into(model: nn.Module, path: Path) -> dict:
    """Fill a model from a checkpoint, strictly; returns the meta.  UsageError says what does not fit."""
    tensors, meta = load_tensors(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit this model: {str(error).splitlines()[1].strip()[:160]}") from None
    return meta


def digest_of(path: Path) -> str:
    """The digest stored in a checkpoint, without reading its tensors."""
    with _opened(path) as file:
        return _info(file, path)[0]


def meta_of(path: Path) -> dict:
    """The meta stored in a checkpoint, without reading its tensors."""
    with _opened(path) as file:
        return _info(file, path)[2]
