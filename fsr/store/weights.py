"""Tensors on disk: safetensors with the digest of their content inside, written all or nothing."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fsr.files import CorruptFile, MissingRecord, write_bytes


def digest(tensors: dict[str, Tensor], meta: str = "") -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names, and over meta."""
    total = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
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


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors on the CPU, meta); MissingRecord when there is none, CorruptFile when it is not what was saved."""
    if not path.exists():
        raise MissingRecord(f"no such checkpoint: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            info = json.loads(file.metadata()["fsr"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            mark, meta = info["digest"], info["meta"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path} cannot be read ({error}); move it away to train again") from None
    if mark != digest(tensors, meta):
        raise CorruptFile(f"{path} is damaged (its content does not match its digest); move it away to train again")
    return tensors, json.loads(meta)


def digest_of(path: Path) -> str:
    """The digest of a checkpoint's content, checked against the one stored inside; raises as `load_tensors`."""
    tensors, meta = load_tensors(path)
    return digest(tensors, json.dumps(meta, sort_keys=True))
