"""Scores of logits, against torch's formulas."""

import numpy as np
import pytest
import torch

from tritonembed_engine.errors import InvalidArgument
from tritonembed_engine.scores import ScoreParameters, activate, parse_score_parameters

LOGITS = np.array([[-3.0, 0.0, 2.5], [1e4, -1e4, 0.0], [88.0, 89.0, -120.0]], np.float32)


def test_logits_stay_without_an_activation() -> None:
    assert activate(LOGITS, "none") is LOGITS


def test_sigmoid_is_torchs_without_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = activate(LOGITS, "sigmoid")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.sigmoid(torch.from_numpy(LOGITS)), rtol=1e-6, atol=1e-30)


def test_softmax_is_torchs_and_adds_up_to_one() -> None:
    found = activate(LOGITS, "softmax")
    np.testing.assert_allclose(found, torch.softmax(torch.from_numpy(LOGITS), 1), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_parameters_of_scores() -> None:
    assert parse_score_parameters("") == ScoreParameters()
    raw = '{"truncate": "NONE", "activation": "none", "instruction": "x", "triton_enable_empty": true}'
    assert parse_score_parameters(raw) == ScoreParameters("NONE", "none", "x")
    assert parse_score_parameters('{"cache_salt": "a"}').salt == "a"
    assert parse_score_parameters('{"cache_salt": "a", "cache": false}').salt is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"activation": "relu"}', "activation: must be one of none, sigmoid, softmax"),
        ('{"truncate": "CHUNK"}', "truncate: must be one of END, START, NONE"),
        ('{"truncate": 1}', "truncate: must be a string"),
        ('{"max_text_tokens": 0}', "max_text_tokens: must be at least 1"),
        ('{"max_text_tokens": 3, "truncate": "NONE"}', "max_text_tokens: cuts texts"),
        ('{"cache": "no"}', "cache: must be a bool"),
        ('{"cache_salt": 1}', "cache_salt: must be a string of at most 128 characters"),
        ('{"instruction": " "}', "instruction: must not be empty"),
        ('{"dimensions": 3}', "'dimensions': unknown parameter of a reranker; known are truncate, activation"),
    ],
)
def test_a_wrong_parameter_is_named(raw: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_score_parameters(raw)
    assert str(caught.value).startswith(message)
