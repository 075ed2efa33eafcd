"""A model's file is believed only as far as it can be checked."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier

from upright.adapters.models import challenger_file, dump, load
from upright.services.learning import Attempt, Context
from upright.services.learning.challenger import Challenger, train
from upright.services.learning.ports import ModelRefused
from upright.services.scoring import built_in_priors

CONTEXT = Context("APIError", "shop")


@pytest.fixture(scope="module")
def challenger() -> Challenger:
    rows = [(CONTEXT, Attempt("retry", index % 3 > 0, 1.0)) for index in range(90)]
    return train(rows, built_in_priors())


def content(challenger: Challenger, **changes: Any) -> bytes:
    import sklearn

    return skops.io.dumps(
        {
            "format": challenger_file.FORMAT,
            "format_version": 1,
            "sklearn": sklearn.__version__,
            "strategies": ["retry"],
            "vectorizer": challenger.vectorizer,
            "classifier": challenger.classifier,
            **changes,
        }
    )


def test_a_model_comes_back_as_it_was(challenger: Challenger) -> None:
    again = load(dump(challenger))
    assert again.strategies == challenger.strategies
    assert again.predict(CONTEXT, ["retry"]) == challenger.predict(CONTEXT, ["retry"])


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_file_is_refused(challenger: Challenger, keep: int) -> None:
    with pytest.raises(ModelRefused, match="damaged or foreign"):
        load(dump(challenger)[:keep])


def test_a_file_of_a_later_version_is_refused(challenger: Challenger) -> None:
    with pytest.raises(ModelRefused, match="format version 2, this version reads 1"):
        load(content(challenger, format_version=2))
    with pytest.raises(ModelRefused, match=r"trained with scikit-learn 99\.1"):
        load(content(challenger, sklearn="99.1.0"))


def test_what_is_no_challenger_is_refused(challenger: Challenger) -> None:
    with pytest.raises(ModelRefused, match="not one of Upright's models"):
        load(skops.io.dumps({"something": "else"}))
    with pytest.raises(ModelRefused, match="estimators"):
        load(content(challenger, classifier=RandomForestClassifier()))
    with pytest.raises(ModelRefused, match="damaged or foreign"):
        load(pickle.dumps(challenger))


class Payload:
    """Would run if a loader trusted it."""


def test_a_type_that_is_not_allowed_is_never_built(challenger: Challenger) -> None:
    with pytest.raises(ModelRefused, match="UntrustedTypesFoundException"):
        load(content(challenger, extra=Payload()))


def test_numbers_that_are_none_are_refused(challenger: Challenger) -> None:
    broken = load(dump(challenger))
    broken.classifier.calibrated_classifiers_[0].estimator.intercept_[0] = float("nan")
    with pytest.raises(ModelRefused, match="not finite"):
        load(dump(broken))


def test_a_file_that_unpacks_to_too_much_is_refused() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b"0" * (challenger_file.MAX_UNPACKED_BYTES + 1))
    with pytest.raises(ModelRefused, match="unpacked"):
        load(packed.getvalue())
