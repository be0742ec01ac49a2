"""Progress in a notebook: a bar for the step at hand, and the curves of the run that is training."""

import os

from IPython.display import display
from tqdm.auto import tqdm

from fsr import experiments, runs, store
from fsr.explore.records import Prose, picture_of
from fsr.files import MissingRecord


class Live:
    """Called as `Options.report`: (run id, what, done, of).  A bar per step, curves per epoch."""

    def __init__(self):
        self.bar: tqdm | None = None
        self.step = ("", "")
        self.handle = None

    def __call__(self, run_id: str, what: str, done: int, of: int) -> None:
        training = what.startswith("epoch")
        step = (run_id, "training" if training else what)
        if step != self.step:
            self.close()
            self.step, self.handle = step, None
            self.bar = tqdm(total=of, desc=f"{run_id}: {step[1]}", leave=False)
        if self.bar is not None:
            self.bar.n = done
            self.bar.set_postfix_str(what if training else "")
        if training and done % max(1, of // int(what.split("/")[1])) == 0:
            self._curves(run_id)
        if done == of:
            self.close()

    def _curves(self, run_id: str) -> None:
        try:
            picture = picture_of(store.config_of(run_id))
        except MissingRecord:
            return
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)

    def close(self) -> None:
        """End the bar at hand."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def complete(profile: str, notebook: str, device: str | None = None) -> Prose:
    """`runs.ensure` with a bar and live curves, then how much is there; at once when everything is recorded.

    With FSR_COMPUTE=0, as after a run that was stopped by its time limit, nothing is computed.
    """
    if os.environ.get("FSR_COMPUTE") != "0":
        live = Live()
        try:
            runs.ensure(profile, notebook, runs.Options(device=device, report=live))
        finally:
            live.close()
    return progress(profile, notebook)


def progress(profile: str, notebook: str) -> Prose:
    """How much of what a notebook reads is recorded, and what to type when something is missing."""
    there: dict[tuple, bool] = {}
    for kind in experiments.NEEDS[notebook]:
        for run in experiments.SETS[experiments.profile_of(profile).name][kind]:
            there[run, "train"] = store.is_trained(run)
            there |= {(run, e): store.has_evaluation(run, e) for e in experiments.evaluations(profile, kind, run)}
            there |= {(run, a): store.has_analysis(run, a) for a in experiments.analyses(profile, kind, run)}
    text = f"Profile **{profile}**: {sum(there.values())} of {len(there)} records that this notebook reads are there."
    command = f"python -m fsr run-all --profile {profile} --only {notebook.split('-')[0]}"
    return Prose(text if all(there.values()) else f"{text} `{command}` makes the others.")
