"""What the report shows, in order."""

from typing import NamedTuple


class Section(NamedTuple):
    """A part of the report: its heading, the question it answers, tables, figures, sentences, and its notebook."""

    heading: str
    question: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]
    prose: tuple[str, ...]
    notebook: str


SECTIONS = (
    Section("The verdict", "Which claims does this replication reproduce?", ("T10",), (), ("verdict",), "15-verdict"),
    Section("The method", "What is added to the network?", (), ("F9",), (), "01-method"),
    Section("White-box robustness", "Does FSR make adversarially trained networks more robust, and by how much?",
            ("T1",), ("F7",), ("whitebox",), "05-whitebox"),
    Section("Against deactivation", "Is repairing non-robust features better than switching them off?",
            ("T2",), (), ("deactivation",), "06-deactivation"),
    Section("Black-box attacks", "Does the robustness hold without access to gradients?",
            ("T3",), (), ("blackbox",), "07-blackbox"),
    Section("Components and controls", "Which part matters, and would something simpler do the same?",
            ("T4",), (), ("components",), "08-components"),
    Section("Settings, place and cost", "How much do the settings matter, and what does the module cost?",
            ("T5", "T6", "T8"), ("F4",), ("settings", "overhead"), "09-settings"),
    Section("What the streams know", "Do recalibrated features regain the cues that the attack destroyed?",
            ("T7",), ("F3", "F2", "F8"), ("streams", "masks"), "10-streams"),
    Section("Attention maps", "Where on the image does each stream look?", (), ("F1",), (), "11-attention-maps"),
    Section("Training curves", "How do the twins learn, and what is the choice of the epoch worth?",
            (), ("F5", "F10"), ("training",), "12-training-curves"),
    Section("Attack strength", "Do the attacks work at all?", (), ("F6",), ("attack_strength",), "13-attack-strength"),
    Section("The adaptive audit", "Is the robustness real?", ("T9",), (), ("audit",), "14-audit"),
)  # fmt: skip
