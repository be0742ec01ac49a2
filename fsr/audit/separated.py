"""Groups that look for what FSR may hide: the mask's slope, the mask itself, latent features, twins, training noise."""

from torch import Tensor

from fsr.attacks import adaptive, auto
from fsr.attacks.adaptive import changed, has_auxiliary, masked
from fsr.attacks.ascent import ascend, differentiated, lead, of
from fsr.attacks.distill import through
from fsr.attacks.latent import LatentHeads
from fsr.attacks.losses import Loss, cross_entropy
from fsr.attacks.unmask import Averaged
from fsr.audit.case import Case, Craft
from fsr.audit.judge import Judge
from fsr.audit.result import Findings
from fsr.audit.whitebox import ratio, scaled_cross_entropy
from fsr.models.fsr import FSR

NO_MASK = "this model has no FSR mask"


def bpda(case: Case) -> Findings:
    """APGD-CE and APGD-DLR with the mask's backward pass at tau = 1."""
    if not case.masks:
        return Findings(not_applicable={"": NO_MASK})

    losses = {"apgd-ce": cross_entropy, "apgd-dlr": ratio(case)}
    more = {"draws": case.draws}
    crafts = [(name, case.aimed(adaptive.smooth_mask, case.net, 30, loss=f, **more)) for name, f in losses.items()]
    return Findings(case.sweep(crafts, together=False))


def mask(case: Case) -> Findings:
    """The mask frozen at its clean value, and driven towards 0 and towards 1."""
    if not case.masks:
        return Findings(not_applicable={"": NO_MASK})
    crafts = [
        ("frozen", case.aimed(adaptive.frozen_mask, case.net, 40)),
        ("towards-0", case.aimed(adaptive.driven_mask, case.inner, 41, towards=0.0, draws=case.draws)),
        ("towards-1", case.aimed(adaptive.driven_mask, case.inner, 41, towards=1.0, draws=case.draws)),
    ]
    return Findings(case.sweep(crafts, together=False))


def latent(case: Case) -> Findings:
    """Final and auxiliary logits together; final logits and freshly trained heads on the stages."""
    crafts: list[tuple[str, Craft]] = []
    missing = {}
    if has_auxiliary(case.model):
        crafts.append(("joint", case.aimed(adaptive.joint_logits, case.inner, 50, draws=case.draws)))
    else:
        missing["joint"] = "this model has no auxiliary logits"
    images, labels = (case.x, case.y) if case.train is None else case.train
    heads = LatentHeads(case.model, images, labels, classes=case.classes, batch=case.batch)
    if not heads.places:
        missing["heads"] = "this model has no stages below its logits"
    for name, weight in (("heads", 1.0), ("heads-strong", 10.0)) if heads.places else ():
        look = differentiated(heads.objective(case.softened, weight), draws=case.draws)
        crafts.append((name, case.aimed(ascend, look, 51, until_wrong=not case.randomised)))
    return Findings(case.sweep(crafts, together=False), {"stages": len(heads.places)}, missing)


def transfer(case: Case) -> Findings:
    """Images made on another network: the twins m = 1 and R = 0, the given surrogate, a student."""
    crafts: list[tuple[str, Craft]] = []
    missing = {}
    for twin in ("m1", "r0"):
        if not case.masks or (twin == "r0" and all(m.correct is None for m in masked(case.model))):
            missing[twin] = NO_MASK if not case.masks else "this model has no recalibration"
            continue
        for name, loss in (("margin", lead), ("ce", cross_entropy)):
            crafts.append((f"{twin}-{name}", case.aimed(adaptive.bypassed, case.net, 60, twin=twin, loss=loss)))
    if case.surrogate is None:
        missing["surrogate"] = "no surrogate network was given"
    else:
        for name, loss in (("margin", lead), ("ce", scaled_cross_entropy)):
            look = differentiated(of(case.surrogate, loss))
            crafts.append((f"surrogate-{name}", case.aimed(ascend, look, 61, until_wrong=False)))
    crafts += [(f"student-{i}", case.aimed(through, case.student, 62 + i)) for i in range(2)]
    return Findings(case.sweep(crafts, together=False), not_applicable=missing)


def _averaged(case: Case, noisy: list[FSR], switches: dict, own: Tensor, loss: Loss) -> Craft:
    """Steps along gradients averaged over draws; own (N,) keeps what the noisy network itself still gets right."""
    voice = Judge(case.model, case.x, case.y, eps=case.eps, draws=case.budget.draws, seed=case.seed)
    look = differentiated(of(case.net, loss), draws=case.budget.draws)

    def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        start, steps = case.start(rows, 70), case.budget.noisy_steps
        with changed(noisy, **switches):
            x_adv = ascend(look, x, y, eps=case.eps, steps=steps, start=start, until_wrong=False)
            own[rows] &= voice.correct(x_adv, rows)
        return x_adv

    return craft


def _rand(case: Case, noisy: list[FSR], switches: dict, own: Tensor) -> Craft:
    """AutoAttack `rand`, judged by the mean vote while it runs; own: as for `_averaged`.

    An image that it does not break with the noise on it gives back clean: without the noise that one was not attacked.
    """

    def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        more = {"eps": case.eps, "version": "rand", "seed": case.seed, "batch": case.batch, **case.budget.rand}
        with changed(noisy, **switches):
            result = auto.autoattack(case.net, x, y, judge=Averaged(case.net, case.budget.draws), **more)
        own[rows] &= result.correct.to(own.device)
        return x if result.x_adv is None else result.x_adv

    return craft


def noise(case: Case) -> Findings:
    """Gradients averaged over 20 draws, and AutoAttack `rand`.

    On a randomised model as it is; on FSR with its training noise switched on, judged on the model as it is. The
    detail `noisy_accuracy` is that noisy network's own: images that its mean softmax still gets right.
    """
    noisy = [m for m in masked(case.model) if m.spec.mask != "soft"]
    if not case.randomised and not noisy:
        return Findings(not_applicable={"": "this model draws no noise"})
    switches = {} if case.randomised else {"noise": True}
    own = case.clean.clone()
    losses = {"eot-margin": lead, "eot-ce": scaled_cross_entropy}
    crafts = [(name, _averaged(case, noisy, switches, own, loss)) for name, loss in losses.items()]
    missing = {}
    if case.classes >= 3:
        crafts.append(("rand", _rand(case, noisy, switches, own)))
    else:
        missing["rand"] = "APGD-DLR needs three classes"
    attacks = case.sweep(crafts, together=False)
    return Findings(attacks, {"noisy_accuracy": float(own.double().mean())}, missing)
