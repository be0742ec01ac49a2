"""The analyses against slow re-derivations of the spec's formulas, on a tiny network that has learned a little."""

import copy
import json

import numpy as np
import pytest
import torch
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from fsr import analyse as room
from fsr import data as data_room
from fsr.analyse import ANALYSES, analyse, peak_memory
from fsr.attacks.gradient import pgd
from fsr.config import Analysis, FSRSpec, PeerSpec, for_dataset
from fsr.config import replace as changed
from fsr.models import count_params, model_of

SPEC, SIZES = FSRSpec(at=("layer2", "layer3")), {"train_size": 160, "test_size": 48, "holdout": 16}
RUN = for_dataset("digits", **SIZES, width=4, blocks=(1, 1, 1, 1), module=SPEC)
STREAMS = ("f", "robust", "nonrobust", "recalibrated", "output")


@pytest.fixture(scope="module")
def data():
    return data_room.load(RUN)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(3)
    model = model_of(RUN)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = data_room.as_float(data.train_x), data.train_y
    for _ in range(25):  # enough for streams and probes to differ
        logits, streams = model.trace(x)
        (F.cross_entropy(logits, y) + sum(F.cross_entropy(s.aux["robust"], y) for s in streams)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def images(model, data, n):
    """Chosen images, PGD-20's, labels and places in the test set."""
    x, y, index = data_room.part_of_test(data, n)
    x = data_room.as_float(x)
    return x, pgd(model, x, y, eps=0.15, alpha=0.015, steps=20), y, index


def traced(model, x):
    """The last module's streams by the names of T7, each (N, C, h, w), the mask and the auxiliary logits."""
    with torch.no_grad():
        last = model.trace(x)[1][-1]
    maps = {name: getattr(last, name) for name in ("robust", "nonrobust", "recalibrated")}
    return {"f": last.robust + last.nonrobust, "output": last.features, **maps}, last


def look(model, kind, data, run=RUN, images=None, **given):
    return analyse(model, run, Analysis(kind=kind, images=images), data, **given)


def counts(rows, probe):
    return {row["stream"]: row["correct"] for row in rows if row["probe"] == probe}


@pytest.mark.parametrize("key, under_attack", [("rows", True), ("rows_clean", False)])
def test_stream_accuracies_are_those_of_a_slow_count(model, data, key, under_attack):
    record, arrays = look(model, "streams", data)
    clean, adv, y, _ = images(model, data, None)
    x = adv if under_attack else clean
    maps, last = traced(model, x)
    bank, _ = traced(model, data_room.as_float(data.train_x))
    head, aux, near = model.net.layer3.module.aux, {}, {}
    slow = KNeighborsClassifier(10, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    for name, features in maps.items():
        flat = features.mean((2, 3))
        logits = last.aux[name] if name in last.aux else flat @ head.weight.T + head.bias
        aux[name] = int((logits.argmax(1) == y).sum())
        slow.fit(bank[name].mean((2, 3)), data.train_y)
        near[name] = int((slow.predict(flat.detach()) == y.numpy()).sum())
    assert (counts(record[key], "aux"), counts(record[key], "knn")) == (aux, near) and set(aux) == set(STREAMS)
    assert len(set(near.values()) | set(aux.values())) > 2  # else the streams could be swapped unseen
    assert {row["n"] for row in record[key]} == {48}
    assert (record["place"], record["k"], record["bank"], record["eps"]) == ("layer3", 10, 160, 0.15)
    right = int((model(x).argmax(1) == y).sum())
    assert record["network_adv" if under_attack else "network_clean"] == right
    assert json.dumps(record) and arrays == {}


def test_masks_are_those_of_the_last_module(model, data, monkeypatch):
    monkeypatch.setattr(room, "BATCH", 11)
    record, arrays = look(model, "masks", data, images=30)
    x, x_adv, _, _ = images(model, data, 30)
    clean, adv = (traced(model, v)[1].mask.numpy() for v in (x, x_adv))
    for name, mask in (("clean", clean), ("adv", adv)):
        expected = np.histogram(mask, arrays["edges"])[0]
        assert np.abs(arrays[f"hist_{name}"] - expected).sum() <= 4  # another batch size, another last bit
        assert record[f"saturated_{name}"] == pytest.approx(((mask < 0.05) | (mask > 0.95)).mean(), abs=1e-3)
    assert record["flipped"] == pytest.approx(((clean > 0.5) != (adv > 0.5)).mean(), abs=1e-3)
    assert record["flipped"] > 0 and not np.array_equal(arrays["hist_clean"], arrays["hist_adv"])
    assert (record["tau"], record["entries"], record["n"]) == (0.1, 30 * 16 * 4, 30)


def test_maps_show_the_attacked_images_and_their_streams(model, data):
    record, arrays = look(model, "maps", data, images=8)
    x, x_adv, y, index = images(model, data, 8)
    assert np.array_equal(arrays["index"], index) and np.array_equal(arrays["labels"], y)
    assert np.array_equal(arrays["natural"], data.test_x[index])
    change = np.abs(arrays["adversarial"].astype(int) - arrays["natural"].astype(int)).max()
    assert 1 < change <= round(0.15 * 255) and arrays["adversarial"].dtype == np.uint8
    answers = (arrays["pred_clean"].tolist(), arrays["pred_adv"].tolist())
    assert answers == tuple(model(v).argmax(1).tolist() for v in (x, x_adv))
    for name, features in traced(model, x_adv)[0].items():
        result = arrays["map_features" if name == "output" else f"map_{name}"]
        np.testing.assert_allclose(result, features.abs().mean(1).numpy(), rtol=2e-3, atol=1e-5)
    assert record["class_names"] == [str(d) for d in range(10)]


def test_features_are_pooled_and_embedded_alike_twice(model, data, monkeypatch):
    record, arrays = look(model, "features", data, images=2000)  # more than there are: all of them
    _, x_adv, _, _ = images(model, data, 48)
    maps, _ = traced(model, x_adv)
    assert record["n"] == 48 and arrays["labels"].shape == (48,)
    again = look(model, "features", data, images=2000)[1]
    monkeypatch.setattr(TSNE, "fit_transform", lambda _, points: points[:, :2])
    pooled = look(model, "features", data, images=2000)[1]
    for name in ("nonrobust", "recalibrated"):
        points = arrays[f"tsne_{name}"]
        np.testing.assert_allclose(pooled[f"tsne_{name}"], maps[name].mean((2, 3))[:, :2], rtol=2e-3, atol=1e-4)
        assert points.shape == (48, 2) and points.dtype == np.float16 and np.isfinite(points).all()
        assert np.array_equal(points, again[f"tsne_{name}"])


@pytest.mark.parametrize("n", [2, 5, 40])
def test_equal_points_and_few_points_have_an_embedding(model, data, n):
    blank = copy.deepcopy(model)
    for part in (blank.net.layer3.submodule, blank.net.layer3.module):
        for p in part.parameters():
            torch.nn.init.zeros_(p)
    arrays = look(blank, "features", data, images=n)[1]
    assert np.isfinite(arrays["tsne_nonrobust"]).all()


def test_peak_memory_of_a_batch_holds_its_weights_gradients_and_activations(model, data):
    x, y = data_room.as_float(data.train_x[:32]), data.train_y[:32]
    first, second = (peak_memory(model, x[:n], y[:n]) for n in (16, 32))
    weights = sum(p.nbytes for p in model.parameters()) / 2**20
    assert 2 * weights < first < second < 2 * first - weights  # what grows with the batch doubles, weights do not


def test_cost_sets_the_network_beside_itself_without_its_modules(model, data):
    record, arrays = look(model, "cost", data, seconds_per_epoch=1.5)
    modules = sum(count_params(place.module) for place in model.inserted())
    assert record["params_added"] == modules and record["params"] == count_params(model)
    assert record["macs_added"] > 0 and record["train_seconds_per_epoch"] == 1.5
    assert set(record["latency_ms"]) == set(record["latency_ms_without"]) == {"1", "128"}
    assert min(*record["latency_ms"].values(), *record["latency_ms_without"].values()) > 0
    assert record["peak_memory_mb"] > record["peak_memory_mb_without"] > 0
    assert json.dumps(record) and arrays == {}
    plain = changed(RUN, module=None)
    bare = look(model_of(plain), "cost", data, plain)[0]
    assert (bare["params_added"], bare["macs_added"]) == (0, 0) and bare["params"] == record["params"] - modules


@pytest.mark.parametrize("kind", ANALYSES)
def test_the_network_is_left_as_it_was(model, data, kind):
    subject = copy.deepcopy(model).train()
    subject.net.bn1.eval()  # frozen on purpose
    state, random = copy.deepcopy(subject.state_dict()), torch.get_rng_state()
    modes = [part.training for part in subject.modules()]
    look(subject, kind, data, images=6)
    assert [part.training for part in subject.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in subject.state_dict().items())
    assert all(p.grad is None for p in subject.parameters())
    assert not any(part._forward_hooks for part in subject.modules()) and len(subject.inserted()) == 2
    assert torch.equal(torch.get_rng_state(), random)


ALL_BUT_ONE = set(STREAMS) - {"recalibrated"}
LACKING = {  # the module, its streams by neighbours, those by a head
    "none": (None, {"f"}, set()),
    "peer": (PeerSpec(name="cas"), {"f", "output"}, set()),
    "residual": (FSRSpec(kind="residual"), {"f", "output"}, set()),
    "aux": (FSRSpec(kind="aux"), {"f", "output"}, {"f", "output"}),
    "separation": (FSRSpec(at=("layer3",), kind="separation"), ALL_BUT_ONE, ALL_BUT_ONE),
}


@pytest.mark.parametrize("module, near, head", LACKING.values(), ids=LACKING)
def test_networks_that_lack_a_mask_or_recalibration_say_so(data, module, near, head):
    run = changed(RUN, module=module)
    network = model_of(run)
    has_mask = near == ALL_BUT_ONE
    for kind in ("masks", "maps", "features"):
        record, arrays = look(network, kind, data, run, images=4)
        if kind == "masks" and has_mask:
            assert record["entries"] == 4 * 16 * 4
        else:
            assert record["not_applicable"].startswith(run.label) and arrays == {}
            assert ("no FSR recalibration" in record["not_applicable"]) == has_mask
    record, _ = look(network, "streams", data, run, images=4)
    assert module or record["place"] == "layer4"  # where the authors put FSR
    assert (set(counts(record["rows"], "knn")), set(counts(record["rows"], "aux"))) == (near, head)
