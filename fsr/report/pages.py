"""One HTML page per profile, and the generated parts of README.md."""

import base64
from pathlib import Path

import jinja2
import pandas as pd

from fsr import experiments, files, plots, reference, store, tables
from fsr.files import MissingRecord, UsageError
from fsr.report import sentences as say
from fsr.tables import labels

QUESTIONS = (  # question, notebook, figures and tables in their order
    ("Does FSR make adversarially trained networks more robust?", "05-whitebox", "F7 T1 T11"),
    ("Which claims hold?", "15-verdict", "T10"),
    ("Is repairing features better than switching them off?", "06-deactivation", "T2"),
    ("Does it hold without gradients?", "07-blackbox", "T3"),
    ("Which part matters, and would something simpler do?", "08-components", "F9 T4"),
    ("Do settings and place matter?", "09-settings", "F4 T5 T6"),
    ("What does it cost?", "09-settings", "T8"),
    ("Do recalibrated features regain cues?", "10-streams", "F3 T7 F2 F8"),
    ("Where on the image does each stream look?", "11-attention-maps", "F1"),
    ("How do the networks learn, and does longer training help?", "12-training-curves", "F5 F10"),
    ("Do the attacks work?", "13-attack-strength", "F6"),
    ("Is the robustness real?", "14-audit", "T9"),
)
REPEATED = ("T1", "T4", "F10")  # of an overfitting study: T11 has the rows of T1 and T4, F5 the panels of F10
OURS = ["ours", "gain", "difference"]
LARGEST_FIRST = ("paper", "headline", "headline40", "overfit", "mini", "demo")


def build(profile: str) -> Path:
    """Write results/report/<profile>.html with its tables and figures; a file that would not change is left alone."""
    return files.write_changed(files.report(experiments.profile_of(profile).name), page(profile))


def page(profile: str) -> str:
    """The whole report as HTML; the same records always give the same text."""
    tables.save_all(profile)
    plan, sections = [*plots.FIGURES, *tables.of_profile(profile)], list[dict]()
    plan = [name for name in plan if "T11" not in plan or name not in REPEATED]
    for question, notebook, names in QUESTIONS:
        parts = [part for name in names.split() if name in plan and (part := _part(profile, name))]
        sections += [{"question": question, "notebook": notebook, "parts": parts}] if parts else []
    shown = [part["name"] for section in sections for part in section["parts"]]
    facts: dict = {"profile": profile, "where": labels.setting(profile), "claimed": say.claimed()}
    facts |= {"first": [say.answer(profile), *filter(None, [say.in_short(profile)]), *say.reasons(profile)]}
    facts |= {"sections": sections, "left_out": [name for name in plan if name not in shown]}
    others, results = pd.concat([tables.table(profile, name) for name in ("T1", "T2")]), reference.known_results()
    others = others[~others["kind"].isin(OURS)].drop_duplicates()
    results = results[results["note"].str.contains("epochs") & results["source"].isin(others["source"])]
    facts["epochs"] = "; ".join((results["source"] + ": " + results["note"]).loc[~results["source"].duplicated()])
    facts["others"] = len(others) and tables.show(others).hide(["seeds", "n"], axis=1).set_caption("Percent.").to_html()
    facts["provenance"] = tables.provenance(profile).to_html(index=False, border=0, na_rep="")
    text = (Path(__file__).parent / "page.html").read_text()
    return jinja2.Template(text, autoescape=True, trim_blocks=True, lstrip_blocks=True).render(facts)


def _part(profile: str, name: str) -> dict | None:
    """What the page shows of a figure or a table, with the sentences on it; None where it was not run."""
    sentences = say.findings(profile, name) if name in say.FINDERS else []
    if name in plots.FIGURES:
        try:
            png, pdf = plots.save(profile, name)
        except MissingRecord:
            return None
        source, file = base64.b64encode(png.read_bytes()).decode(), f"../../figures/{pdf.parent.name}/{pdf.name}"
        return {"name": name, "title": plots.TITLES[name], "said": sentences, "png": source, "file": file}
    if not sentences:
        return None
    frame = shown = tables.table(profile, name)
    if name == "T11":  # of all weights, since that is what the study is about; AutoAttack, of few, is in a sentence
        shown = shown[shown["value"].notna() & (shown["metric"] != "autoattack")]
    elif name == "T9":  # but for attacks that find all images of the binarization test
        shown = shown[shown.groupby("item")["value"].transform("min").ne(1) | ~shown["item"].str.match("binarization")]
    elif "metric" in frame or "stream" in frame:
        shown = shown[shown["checkpoint"] == experiments.profile_of(profile).report_checkpoint]
    if "metric" in frame:
        shown = shown[shown["kind"].isin(["ours"] if name in ("T5", "T6") else OURS)]  # F4 shows their differences
    if "value" in shown and name != "T9" and shown["value"].isna().mean() > 0.5:  # most of it was not run
        return None
    (stem, title), notes = tables.TABLES[name], tables.notes(profile, name)
    notes += ["Attacks that find all images are in the csv; random noise should find none."] * (name == "T9")
    part = {"name": name, "title": title, "said": sentences, "notes": notes, "file": f"../tables/{profile}/{stem}"}
    return part | {"html": tables.show(shown).to_html() if len(shown) else ""}


def _recorded() -> dict[str, dict]:
    """The gain of FSR per profile whose main pair has been evaluated, the largest profile first."""
    return {name: gain for name in LARGEST_FIRST if (gain := say.main_gain(say.reported(name, "T1"), name))}


def answers() -> str:
    """The answer of the largest profile that is settled, with what may explain it, then the other answers."""
    if not (gains := _recorded()):
        return "No profile that answers the question has been run here."
    first, *others = gains
    short = "".join(map(say.in_short, others))
    lines = [f"**{say.answer(first)} {short}**", "", say.claimed(), "", *(f"- {one}" for one in say.reasons(first))]
    plain = list[str]()
    for name in others:
        if say.in_short(name):
            lines += ["", f"When does FSR gain? {labels.setting(name)}:", "", *(f"- {one}" for one in say.study(name))]
            continue
        more = say.findings(name, "T7")[:1] + say.findings(name, "T9") if name != "demo" else []  # digits prove nothing
        plain.append("- " + " ".join([say.answer(name), *more]))
    return "\n".join([*lines, *(["", "Other settings:", "", *plain] if plain else [])])


def results() -> str:
    """AT and AT + FSR in the largest recorded profile, last and EMA weights: accuracy and gain per attack."""
    if not (gains := _recorded()):
        raise MissingRecord("no pair has been evaluated here; `python -m fsr run-all` makes what README states")
    profile, metrics = next(iter(gains)), ["clean", "ensemble", "autoattack"]
    frame = tables.table(profile, "T1").sort_values("checkpoint", ascending=False, kind="stable")  # last before EMA
    pair = frame["row"].isin(["AT", "AT + FSR", say.MAIN]) & frame["checkpoint"].ne("best") & frame["kind"].isin(OURS)
    shown = frame[pair & frame["metric"].isin(metrics)]
    text = tables.wide(shown).drop(columns=["data", "network", "n"]).to_markdown(index=False, disable_numparse=True)
    return f"{labels.setting(profile)}, {shown['n'].max():,.0f} images, in percent:\n\n{text}"


def profiles() -> str:
    """What every profile trains, and how much of it is done."""
    rows = []
    for name, profile in experiments.PROFILES.items():
        plan = experiments.SETS[name]["all"]
        data, done = dict.fromkeys(map(labels.data, plan)), sum(map(store.is_trained, plan))
        row = {"profile": f"`{name}`", "data": ", ".join(data), "main network": labels.network(profile.base)}
        trained = "by tests" if name == "ci" else f"{done} of {len(plan)}"
        rows.append(row | {"epochs": profile.base.epochs, "trained": trained})
    return pd.DataFrame(rows).to_markdown(index=False)


PARTS = (answers, results, profiles)


def rewrite(text: str, parts) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- /name -->` made anew."""
    for part in parts:
        begin, end = f"<!-- {part.__name__} -->\n", f"<!-- /{part.__name__} -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}{part()}\n{end}{rest.split(end, 1)[1]}"
    return text


def update_readme() -> list[Path]:
    """Bring this repository's README.md up to date; it, if that changed it. UsageError in another root."""
    if files.root().resolve() != files.repository().resolve():
        raise UsageError("README states the records of this repository; leave out --root or --readme")
    path = files.repository() / "README.md"
    old, new = path.read_text(), rewrite(path.read_text(), PARTS)
    return [files.write_changed(path, new)] if new != old else []
