"""An authors' checkpoint becomes a run: importing it twice changes nothing, and its logits are theirs."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "models"))

from official_net import OfficialResNet, randomised

from fsr import runs, store
from fsr.files import UsageError
from fsr.runs import import_official


def test_an_imported_checkpoint_is_a_run_with_the_authors_outputs(root, tmp_path):
    theirs = randomised(OfficialResNet()).eval()
    file = tmp_path / "cifar10_resnet18.pth"
    torch.save(theirs.state_dict(), file)
    names, kept = [], []
    for _ in range(2):
        names.append(import_official(file, "resnet18", "cifar10"))
        kept.append({p: p.read_bytes() for p in root.rglob("*") if p.is_file()})
    name = names[0]
    assert names[1] == name and kept[0] == kept[1]
    run = store.config_of(name)
    assert store.is_trained(run) and run.imported and run.holdout == 0
    model, x = runs.load_model(run), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(x)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_data_set_is_refused_and_nothing_is_written(root, tmp_path):
    file = tmp_path / "cifar10_resnet18.pth"
    torch.save(randomised(OfficialResNet()).state_dict(), file)
    with pytest.raises(UsageError, match="has 10 classes and tinyimagenet has 200: give another --dataset"):
        import_official(file, "resnet18", "tinyimagenet")
    assert not (root / "results").exists()
