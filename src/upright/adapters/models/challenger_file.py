"""A challenger as bytes: skops, under an allow-list that the file has no say in."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from typing import Any

from upright.services.learning.challenger import Challenger
from upright.services.learning.ports import ModelRefused

FORMAT = "upright-challenger"
FORMAT_VERSION = 1
# skops trusts scikit-learn's public types by itself; these two are what a calibrated classifier holds besides.
TRUSTED = ["sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"]
MAX_BYTES = 8 * 1024 * 1024
MAX_UNPACKED_BYTES = 64 * 1024 * 1024


def dump(challenger: Challenger) -> bytes:
    import sklearn  # pyright: ignore[reportMissingTypeStubs]
    import skops.io  # pyright: ignore[reportMissingTypeStubs]

    content: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sklearn": sklearn.__version__,
        "strategies": sorted(challenger.strategies),
        "vectorizer": challenger.vectorizer,
        "classifier": challenger.classifier,
    }
    dumped: bytes = skops.io.dumps(content)
    return dumped


def load(data: bytes) -> Challenger:
    """Raises ModelRefused, whatever is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return _load(data)
    except ModelRefused:
        raise
    except Exception as error:
        raise ModelRefused(f"damaged or foreign: {type(error).__name__}: {str(error)[:200]}") from error


def _load(data: bytes) -> Challenger:
    import sklearn  # pyright: ignore[reportMissingTypeStubs]
    import skops.io  # pyright: ignore[reportMissingTypeStubs]
    from sklearn.calibration import CalibratedClassifierCV  # pyright: ignore[reportMissingTypeStubs]
    from sklearn.feature_extraction import DictVectorizer  # pyright: ignore[reportMissingTypeStubs]

    if len(data) > MAX_BYTES:
        raise ModelRefused(f"{len(data)} bytes, {MAX_BYTES} at most")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(one.file_size for one in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise ModelRefused(f"{unpacked} bytes unpacked, {MAX_UNPACKED_BYTES} at most")
    content: Any = skops.io.loads(data, trusted=TRUSTED)
    if not isinstance(content, dict) or content.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
        raise ModelRefused("not one of Upright's models")
    found: dict[str, Any] = content  # pyright: ignore[reportUnknownVariableType]
    if found.get("format_version") != FORMAT_VERSION:
        raise ModelRefused(f"format version {found.get('format_version')!r}, this version reads {FORMAT_VERSION}")
    if _release(found["sklearn"]) != _release(sklearn.__version__):
        raise ModelRefused(f"trained with scikit-learn {found['sklearn']}, this is {sklearn.__version__}: train again")
    vectorizer, classifier = found["vectorizer"], found["classifier"]
    if type(vectorizer) is not DictVectorizer or type(classifier) is not CalibratedClassifierCV:
        raise ModelRefused("its estimators are not those of a challenger")
    challenger = Challenger(vectorizer, classifier, frozenset(str(one) for one in found["strategies"]))
    if not all(math.isfinite(one) for one in challenger.numbers()):
        raise ModelRefused("its numbers are not finite")
    return challenger


def _release(version: str) -> list[str]:
    return str(version).split(".")[:2]
