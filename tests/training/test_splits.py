"""Tests of training/splits.py; `check_split` is tested where runs and static networks begin."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training.support import coloured
from training.errors import ConfigError
from training.splits import check_set_aside, data_of


@pytest.fixture
def every():
    return replace(coloured(30), digest="of all")


def test_check_set_aside_from_what_was_trained_on_passes_and_from_other_images_raises(every):
    tests, train, held_out = (every.subset(np.arange(*rows)) for rows in ((6,), (6, 27), (27, 30)))
    data = data_of("some/photos", train, held_out)
    assert data == {"source": "photos", "train": 21, "held_out": 3, "digest": "of all"}
    check_set_aside(tests, "photos", "mine", data)
    # As many as when there was a test split; what is not told is not checked.
    for changed in ({"digest": "of others"}, {"train": 27}):
        with pytest.raises(ConfigError, match="data 'photos' has no test split, and has changed"):
            check_set_aside(tests, "photos", "mine", data | changed)
        check_set_aside(tests, "elsewhere", "mine", data | changed)
        check_set_aside(every, "photos", "mine", data | changed)
    check_set_aside(tests, "photos", "mine", {"source": "photos"})
