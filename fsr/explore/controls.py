"""The explorer's controls: every change calls the plain functions and shows their picture or their error."""

import base64
import html

import ipywidgets as widgets
from IPython.core.formatters import DisplayFormatter

from fsr.explore.display import Picture
from fsr.explore.looking import ATTACKS, Choice, choices, look
from fsr.explore.pictures import compare, picture
from fsr.explore.records import Prose
from fsr.files import FSRError
from fsr.tables import labels as words


def shown(first: Choice | None, second: Choice | None, attack: str, image: int) -> Picture | Prose:
    """What the app displays for these settings."""
    left = look(first, attack=attack, image=image)
    return picture(left) if second is None else compare(left, look(second, attack=attack, image=image))


def outputs_of(result: Picture | Prose) -> tuple[dict]:
    """What an output area holds when it shows this, as its state.

    Not captured by `with output:`, for then whatever executes the notebook answers on the very channel on which it
    waits for the end of the cell, and may wait for ever (nbclient, issue 312).
    """
    data, metadata = DisplayFormatter().format(result)
    text = {kind: base64.b64encode(v).decode() if isinstance(v, bytes) else v for kind, v in data.items()}
    return ({"output_type": "display_data", "data": text, "metadata": metadata},)


class App:
    """Menus for one or two networks, an attack and an image; `box` is the widget, `refresh` what a change calls."""

    def __init__(self, profile: str):
        known = choices(profile)
        menu: list[tuple[str, Choice | None]] = [(c.name, c) for c in known.networks]
        menu = menu or [("(no weights here)", None)]
        wide = widgets.Layout(width="95%")
        start = known.default("at+fsr") or menu[0][1]
        self.first = widgets.Dropdown(options=menu, value=start, description="network", layout=wide)
        self.second = widgets.Dropdown(options=[("(none)", None), *menu], description="beside it", layout=wide)
        self.attack = widgets.Dropdown(
            options=[(words.metric(name), name) for name in ATTACKS], value="pgd20", description="attack"
        )
        self.image = widgets.BoundedIntText(value=0, min=0, max=10_000_000, description="image")
        self.message = widgets.HTML()
        self.output = widgets.Output()
        controls = (self.first, self.second, self.attack, self.image)
        for control in controls:
            control.observe(self.refresh, names="value")
        self.box = widgets.VBox([*controls, self.message, self.output])
        self.refresh()

    def refresh(self, _change=None) -> None:
        """Show the chosen look; an error of the package becomes a line in its place, and nothing is swallowed."""
        self.message.value = "computing ..."
        try:
            result = shown(self.first.value, self.second.value, self.attack.value, self.image.value)
        except FSRError as error:
            self.output.outputs = ()  # not the picture of what was chosen before
            self.message.value = f"<b>{html.escape(str(error))}</b>"
            return
        self.output.outputs = outputs_of(result)
        self.message.value = ""


def app(profile: str) -> widgets.VBox:
    """The controls as one widget."""
    return App(profile).box
