"""F6: accuracy against the strength of the attack."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments, store
from fsr.config import Run
from fsr.plots import readings, style, words
from fsr.plots.readings import Accuracy

LOOKS = ((style.PLAIN, "o", "-"), (style.WITH_FSR, "s", (0, (5, 1.5))))


def sweep(profile: str, run: Run, axis: str) -> list[tuple[float, Accuracy]]:
    """(eps or steps, accuracy) of the planned sweep, rising, only what was run; eps 0 is the clean accuracy."""
    points = []
    for evaluation in experiments.evaluations(profile, "strength", run):
        value = 0.0 if evaluation.attack == "clean" and axis == "eps" else getattr(evaluation, axis)
        if value is not None and store.has_evaluation(run, evaluation):
            points.append((float(value), readings.counted(store.load_evaluation(run, evaluation))))
    return sorted(points, key=lambda point: point[0])


def _curve(ax: Axes, points: list[tuple[float, Accuracy]], look, label: str, scale: float) -> None:
    colour, marker, dash = look
    xs = [x * scale for x, _ in points]
    ax.fill_between(xs, [a.low for _, a in points], [a.high for _, a in points], color=colour, alpha=0.15, linewidth=0)
    ax.plot(xs, [a.value for _, a in points], color=colour, marker=marker, linestyle=dash, label=label)


def _panel(ax: Axes, profile: str, axis: str, scale: float) -> bool:
    drawn = False
    for row, look in zip(readings.rows(profile, "strength"), LOOKS, strict=True):
        points = sweep(profile, row.runs[0], axis)
        if any(x > 0 for x, _ in points):  # clean accuracy alone is no curve
            _curve(ax, points, look, words.method(row.runs[0].label), scale)
            drawn = True
    if not drawn:
        style.not_run(ax)
        return False
    style.percent_axis(ax)
    return True


@style.styled
def attack_strength(profile: str) -> Figure:
    """F6: PGD accuracy against eps, which must fall to zero, and against steps, which must not rise.

    Both are sanity checks (Carlini 2019): a curve that stays up means a failed attack, not a strong network.
    """
    run = experiments.main_pair(profile)[0]
    small = run.eps < 0.1
    fig, grid = style.panels(1, 2, 3.0)
    left, right = grid[0]
    if _panel(left, profile, "eps", 255 if small else 1):
        left.set_ylim(-0.02, 1.02)
        left.axvline(run.eps * (255 if small else 1), color=style.GREY, linestyle=":", linewidth=1)
    left.set(title="radius, 20 steps", xlabel="eps, in 1/255" if small else "eps", ylabel="accuracy")
    if _panel(right, profile, "steps", 1):
        right.set_xscale("log")
        ticks = [x for x, _ in sweep(profile, run, "steps")]
        right.set_xticks(ticks, [f"{x:g}" for x in ticks])
        right.minorticks_off()
    right.set(title=f"steps, eps {255 * run.eps:g}/255" if small else f"steps, eps {run.eps:g}", xlabel="steps of PGD")
    shown = [ax for ax in (left, right) if ax.get_legend_handles_labels()[1]]
    if shown:
        fig.legend(*shown[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    least = min((a.n for axis in ("eps", "steps") for _, a in sweep(profile, run, axis)), default=None)
    count = "" if least is None else f", {least:,} images"
    told = "bands: 95 %; dotted: the usual eps; right: axis cut"
    style.foot(fig, f"step 0.1 eps, no random start, seed 0, {readings.weights(profile)}{count}; {told}")
    return fig
