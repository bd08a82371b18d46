"""Cards of small networks."""

from __future__ import annotations

from dataclasses import replace

from models.card import CalibrationPoint, Card
from models.card import TestPoint as BudgetPoint  # Or pytest takes it for a test.
from models.config import AgentConfig
from models.preprocess import Preprocessing
from tests.models.support import agent_config, tiny_backbone

FORMS = ["paths", "priced", "paper"]
CALIBRATION = (
    CalibrationPoint(penalty=8.0, fraction=0.30004, accuracy=0.5),
    CalibrationPoint(penalty=2.0, fraction=0.5, accuracy=0.6),
    CalibrationPoint(penalty=0.5, fraction=0.9, accuracy=0.7),
)


def make_card(**changes):
    card = Card(
        name="tiny",
        labels=("cat", "dog", "frog"),
        backbone=tiny_backbone(),
        agent=AgentConfig("paper", encoding=4, hidden=5),
        preprocessing=Preprocessing(8, 9, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
        calibration=CALIBRATION,
        test=(BudgetPoint(budget=0.4, fraction=0.41, spread=0.1, accuracy=0.55),),
        data={"source": "photos"},
        seed=7,
        training={"epochs": 3},
        git_commit="abc",
    )
    return replace(card, **changes)


def card_of(form, backbone):
    """A card of a backbone with an agent of any form."""
    agent = agent_config(form, backbone, encoding=4, hidden=5)
    labels = tuple(f"label {i}" for i in range(backbone.classes))
    size = backbone.image_size
    preprocessing = Preprocessing(size, size + 1, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    return make_card(backbone=backbone, agent=agent, labels=labels, preprocessing=preprocessing)
