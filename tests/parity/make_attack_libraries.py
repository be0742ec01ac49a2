"""What torchattack and adv-lib answer on a small net, frozen: tests compare with that and need neither library.

The net and the images are stored with the answers. Pixels, eps and alpha are whole fifths of a grey level, hence so is
each iterate, and one byte per pixel keeps a float64 answer. Half the labels are right, half the least likely; no label
comes third (there the DLR is flat) and each gradient is zero or above 1e-7 of its image's largest: rounding turns no
sign. To ask again: pip install --no-deps torchattack adv-lib; python tests/parity/make_attack_libraries.py
"""

import importlib
import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from fsr.files import npz_bytes, write_bytes

FIXTURE = Path(__file__).parent / "attack_libraries.npz"
FIFTH = 1 / (5 * 255)  # of a grey level: eps is 40 of them, alpha 4
SETTINGS = {"eps": 8 / 255, "alpha": 0.8 / 255, "steps": 12}  # steps enough to meet the border of the ball


def load():
    """The stored net, images and answers."""
    with np.load(FIXTURE, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def network(stored):
    """The small net, for images of any size, in float64."""
    body = nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Tanh()
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)).double()
    net.load_state_dict({name: torch.from_numpy(stored[f"net.{name}"]).double() for name in net.state_dict()})
    return net


def images(stored):
    """x (N, 3, 12, 12) float64 in [0, 1] and y (N,)."""
    return torch.from_numpy(stored["grey"]).double() / 255, torch.from_numpy(stored["y"])


def answer(stored, name):
    """A library's x_adv, like x."""
    return images(stored)[0] + FIFTH * torch.from_numpy(stored[name]).double()


def _fifths(x_adv, x):
    """By how many fifths of a grey level an answer differs from x, int8."""
    change = (x_adv.detach() - x) / FIFTH
    assert (change - change.round()).abs().max() < 1e-9, "a byte per pixel cannot keep it"
    return change.round().to(torch.int8).numpy()


def _watched(diversity, draws):
    """Their input diversity, noting each size, top and left; told by where ones end up, not by how it draws them."""

    def transform(x, *rest):
        state = torch.get_rng_state()
        inside = diversity(torch.ones_like(x), *rest)[0, 0] > 0
        torch.set_rng_state(state)
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        draws.append((len(rows), int(rows[0]), int(columns[0])))
        return diversity(x, *rest)

    return transform


def torchattack_answers(stored):
    """torchattack's PGD, MI, TI and DI, the last two without momentum, and the draws of DI."""
    from scipy.stats import norm

    library, module = importlib.import_module("torchattack"), importlib.import_module("torchattack.difgsm")
    net, (x, y), draws, common = network(stored), images(stored), [], {"device": torch.device("cpu"), **SETTINGS}

    class Dongs(library.TIFGSM):
        """With the kernel of Dong et al.'s code, in float64; the library's own takes a root and is wider."""

        def get_kernel(self):
            line = norm.pdf(np.linspace(-3, 3, 7))
            return torch.from_numpy(np.outer(line, line) / line.sum() ** 2).expand(3, 1, 7, 7)

    found = {"pgd": library.PGD(net, random_start=False, **common)(x, y)}
    found |= {"mi": library.MIFGSM(net, decay=1.0, **common)(x, y), "ti": Dongs(net, decay=0.0, **common)(x, y)}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        patch.setattr(module, "input_diversity", _watched(module.input_diversity, draws))
        found["di"] = library.DIFGSM(net, decay=0.0, resize_rate=0.5, diversity_prob=0.7, **common)(x, y)
    answers = {f"torchattack.{name}": _fifths(x_adv, x) for name, x_adv in found.items()}
    return {"torchattack.di.draws": np.array(draws, np.uint8), **answers}


def adv_lib_answers(stored):
    """adv-lib's PGD on each of its losses.

    It returns the last image that erred before the final step: one step more makes that our last iterate.
    """
    net, (x, y) = network(stored), images(stored)
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("visdom") is None:  # which it imports for plots only: an empty module does
            patch.setitem(sys.modules, "visdom", ModuleType("visdom"))
        pgd = importlib.import_module("adv_lib.attacks").pgd_linf
    how = {"steps": SETTINGS["steps"] + 1, "random_init": False, "absolute_step_size": SETTINGS["alpha"]}
    losses = ("ce", "dl", "dlr")
    return {
        f"adv-lib.{loss}": _fifths(pgd(net, x, y, SETTINGS["eps"], loss_function=loss, **how), x) for loss in losses
    }


ANSWERS = {"torchattack": torchattack_answers, "adv-lib": adv_lib_answers}

if __name__ == "__main__":
    arrays = load()
    for ask in ANSWERS.values():
        arrays |= ask(arrays)
    arrays |= {f"{name}.version": np.array(version(name)) for name in (*ANSWERS, "torch", "numpy")}
    write_bytes(FIXTURE, npz_bytes(**arrays))
