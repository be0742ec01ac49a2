"""TensorBoard's files of a training, open from its first epoch to its last."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fsr import files
from fsr.config import Run, run_id


@contextmanager
def board(run: Run, *, wanted: bool) -> Iterator[Callable[[dict], None]]:
    """What takes each epoch's row of the history; it does nothing with it unless the files are wanted."""
    if not wanted:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    def add(row: dict) -> None:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        writer.flush()

    with SummaryWriter(str(files.results() / "tensorboard" / run_id(run))) as writer:
        yield add
