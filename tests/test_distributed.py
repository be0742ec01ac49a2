"""One training in two or three processes: what one process would have computed, up to rounding."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from ray_nodes import end, free_port
from torch import nn

from fsr import store
from fsr.config import FSRSpec, for_dataset, run_id
from fsr.data import load
from fsr.experiments import SETS
from fsr.files import Interrupted
from fsr.runs import Options, Task, state_path, training
from fsr.runs.local import run_inline
from fsr.store.weights import load_tensors
from fsr.train import Callbacks, Trainer, distributed, fit
from fsr.train.distributed import CpuSyncBatchNorm

# 49 images in batches of 32 and 17: the last one is shared 8 to 9; 15 held-out images are shared 7 to 8
SIZES = {"train_size": 49, "test_size": 20, "holdout": 15, "width": 4, "blocks": (1, 1, 1, 1), "batch": 32}
TINY = for_dataset("digits", **SIZES, epochs=2, steps=3, precision="float32", sync_bn=True, lr=0.05)
FSR = replace(TINY, module=FSRSpec(at=("layer3",)))
# no steps: at the clean image KL has no slope, so rounding alone decides the signs of its first step
AWP = replace(TINY, method="trades", awp=0.01, steps=0)
REPLICAS = replace(FSR, sync_bn=False)
BF16 = replace(FSR, precision="bf16", width=16)
LONG = replace(REPLICAS, epochs=5)
RUNS = {"fsr": FSR, "awp": AWP, "replicas": REPLICAS}
PATIENCE = 600  # seconds, for a machine that does other work as well


def trained(run, resume=None, stop_after=None) -> dict:
    """Tensors, progress and crafting precision of a training, from `resume` on, or up to a batch."""
    trainer, batches = Trainer(run, load(run)), []
    if resume is not None:
        trainer.restore(resume["tensors"], resume["progress"])
    watch = Callbacks(on_batch=lambda *_: batches.append(1), interrupted=lambda: len(batches) == stop_after)
    with suppress(Interrupted):
        fit(trainer, watch)
    for row in trainer.progress.rows:
        row.pop("seconds", None)  # a clock
    tensors = {k: v.clone() for k, v in trainer.tensors().items()}
    return {"tensors": tensors, "progress": asdict(trainer.progress), "crafting": trainer.crafter.switches["crafting"]}


def layer_outputs(layer: nn.Module) -> dict:
    """Output, gradient and statistics for this process's shard of six maps."""
    x = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    part = x[distributed.shard(6)].requires_grad_()
    y = layer.double()(part)
    (y * torch.arange(6.0)[distributed.shard(6), None, None, None]).sum().backward()
    return {"y": y.detach(), "grad": part.grad, "statistics": torch.stack([layer.running_mean, layer.running_var])}


def scenarios() -> dict:
    out = {name: trained(run) for name, run in RUNS.items()}
    only_last = 3 if distributed.rank() == 1 else None  # one process alone is asked to stop; all do
    out["stopped"] = trained(FSR, stop_after=only_last)
    out["resumed"] = trained(FSR, resume=distributed.decide(out["stopped"]))
    out["bf16"] = trained(BF16)["crafting"]
    return out | {"layer": layer_outputs(CpuSyncBatchNorm(3))}


def process(rank: int, size: int, port: str, folder: str) -> None:
    group = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    torch.set_num_threads(1)
    with distributed.group("cpu"):
        torch.save(scenarios(), Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module", params=[2, 3])
def group(request, tmp_path_factory):
    size, folder, port = request.param, tmp_path_factory.mktemp("group"), str(free_port())
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, size, port, str(folder))) for rank in range(size)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(PATIENCE)
    assert [one.exitcode for one in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.mark.slow
def test_processes_compute_what_one_computes_and_hold_the_same(group):
    for name, run in RUNS.items():
        alone, (first, *others) = trained(run), [one[name] for one in group]
        for other in others:
            assert first["progress"]["rows"] == other["progress"]["rows"]
            torch.testing.assert_close(first["tensors"], other["tensors"], rtol=0, atol=0)
        if name == "replicas":  # statistics per replica are another training
            assert first["progress"]["rows"] != alone["progress"]["rows"]
            continue
        assert first["progress"]["best_epoch"] == alone["progress"]["best_epoch"]
        for ours, theirs in zip(alone["progress"]["rows"], first["progress"]["rows"], strict=True):
            assert theirs == pytest.approx(ours, rel=2e-4, abs=1e-6)
        torch.testing.assert_close(first["tensors"], alone["tensors"], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_one_process_asked_to_stop_stops_all_and_the_resumed_training_is_the_whole_one(group):
    assert all(one["stopped"]["progress"]["step"] == 3 for one in group)
    assert group[0]["stopped"]["tensors"]["sums/images"] == 32
    resumed, whole = group[0]["resumed"], group[0]["fsr"]
    for ours, theirs in zip(resumed["progress"]["rows"], whole["progress"]["rows"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    exact = len(group) == 2  # sums of three round by their order, and DDP orders gradients anew after its first step
    how = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(resumed["tensors"], whole["tensors"], **how)


@pytest.mark.slow
def test_synchronised_statistics_are_those_of_the_whole_batch_and_bf16_is_crafted_in(group):
    expected = layer_outputs(nn.BatchNorm2d(3))
    for part in ("y", "grad"):
        torch.testing.assert_close(torch.cat([one["layer"][part] for one in group]), expected[part])
    for one in group:
        torch.testing.assert_close(one["layer"]["statistics"], expected["statistics"])
        assert one["bf16"] == trained(replace(BF16, sync_bn=False))["crafting"]


def torchrun(root: Path, *what: str, **variables: str) -> int:
    """Exit code of torchrun with two processes; its log is in root/log, and nothing of it outlives the call."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    with open(root / "log", "wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        process = subprocess.Popen([*command, *what], stdout=log, stderr=log, env=environment)
    try:
        return process.wait(PATIENCE)
    finally:
        end(process)


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [(), ("--max-restarts=1",)], ids=["the same command", "torchrun itself"])
def test_a_lost_process_ends_the_run_which_goes_on_by(root, restarts):
    lost = torchrun(root, *restarts, __file__, FSR_TEST_LOSE="3")
    assert (lost == 0) == bool(restarts), (root / "log").read_text()
    if not restarts:
        tensors, progress = load_tensors(state_path(LONG))  # whole: its digest is right
        assert progress["epoch"] == 3 and tensors["model/net.conv1.weight"].isfinite().all()
        assert not store.is_trained(LONG) and torchrun(root, __file__) == 0, (root / "log").read_text()
    assert list(store.history(LONG)["epoch"]) == list(range(1, LONG.epochs + 1))
    record = store.environment(LONG)
    assert record["processes"] == 2 and [part["processes"] for part in record["sittings"]] == [2, 2]


@pytest.mark.slow
def test_the_command_line_shares_trainings_and_nothing_else(root):
    arguments = ["whitebox", "--profile", "ci", "--root", str(root), "--device", "cpu"]
    assert torchrun(root, "-m", "fsr", "evaluate", *arguments) != 0
    assert "torchrun is for" in (root / "log").read_text()
    run = SETS["ci"]["whitebox"][0]
    assert torchrun(root, "-m", "fsr", "train", run_id(run), *arguments[1:]) == 0, (root / "log").read_text()
    assert store.environment(run)["processes"] == 2


def fit_until_lost(trainer: Trainer, watch: Callbacks, **more) -> None:
    """As `fit`, but process 1 is killed in epoch $FSR_TEST_LOSE, once: the group that torchrun starts again lives."""

    def lose(*_) -> None:
        if trainer.progress.epoch == int(os.environ["FSR_TEST_LOSE"]):
            os.kill(os.getpid(), signal.SIGKILL)

    if distributed.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        watch = replace(watch, on_batch=lose)
    fit(trainer, watch, **more)


if __name__ == "__main__":  # under torchrun
    logging.basicConfig(level=logging.INFO)
    if "FSR_TEST_LOSE" in os.environ:
        training.fit = fit_until_lost
    sys.exit(bool(run_inline([Task(run=LONG)], Options(device="cpu", report=print))))
