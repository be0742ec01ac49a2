"""Tensors on disk: safetensors with the digest of their content inside, written all or nothing."""

import hashlib
import json
import os
from pathlib import Path

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
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(meta or {}, sort_keys=True)
    mark = digest(tensors, text)
    # one entry: several would be written in an order that changes from call to call
    write_bytes(path, save(tensors, metadata={"fsr": json.dumps({"digest": mark, "meta": text})}))
    return mark


def _info(file, path: Path) -> dict[str, str]:
    """Digest and meta of an open checkpoint; CorruptFile for a file that this version did not write."""
    text = (file.metadata() or {}).get("fsr")
    if text is None:
        raise CorruptFile(
            f"{path} was not written by this version of the package (it has no `fsr` entry in its metadata); "
            "read it with the version that wrote it, or move it away to train again"
        )
    info = json.loads(text)
    if not isinstance(info, dict) or not all(isinstance(info.get(name), str) for name in ("digest", "meta")):
        raise ValueError("its header is damaged")
    if not isinstance(json.loads(info["meta"]), dict):
        raise ValueError("its header is damaged")
    return info


def _unreadable(path: Path, error: Exception) -> CorruptFile:
    """Damaged, or not for this user to read."""
    if not os.access(path, os.R_OK):
        return CorruptFile(f"{path} cannot be read: permission denied; the file may be whole, so give yourself access")
    return CorruptFile(f"{path} cannot be read ({error}); move it away to train again")


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors on the CPU, meta); MissingRecord when there is none, CorruptFile when it is not what was saved."""
    if not path.exists():
        raise MissingRecord(f"no such checkpoint: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            info = _info(file, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if info["digest"] != digest(tensors, info["meta"]):
        raise CorruptFile(f"{path} is damaged (its content does not match its digest); move it away to train again")
    return tensors, json.loads(info["meta"])


def load_into(model: nn.Module, path: Path) -> dict:
    """Fill a model from a checkpoint, strictly; returns the meta.  CorruptFile or UsageError says what does not fit."""
    tensors, meta = load_tensors(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit this model: {str(error).splitlines()[1].strip()[:160]}") from None
    return meta


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return _info(file, path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def digest_of(path: Path) -> str:
    """The digest stored in a checkpoint, without reading its tensors."""
    return _header(path)["digest"]


def meta_of(path: Path) -> dict:
    """The meta stored in a checkpoint, without reading its tensors."""
    return json.loads(_header(path)["meta"])
