"""Evaluation mode that is put back exactly as it was."""

from contextlib import contextmanager


@contextmanager
def eval_mode(model):
    """Evaluate inside the block; afterwards every submodule has its own mode back.

    model: any nn.Module. Restoring per submodule keeps a deliberately frozen part frozen, which a
    bare `model.train()` afterwards would not.
    """
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, was_training in before.items():
            module.training = was_training
