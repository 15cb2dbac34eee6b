"""The tree at the head of `errors` is that of all the package's errors."""

from __future__ import annotations

import importlib
import pickle
import pkgutil

import pytest

import clipfarm_dagster
from clipfarm_dagster import errors


def _drawn_below(base: type[BaseException], indent: str = "") -> list[str]:
    """One line for each class that derives from `base`, in the order in which they are defined."""
    lines, below = [], base.__subclasses__()
    for each in below:
        last = each is below[-1]
        lines.append(f"{indent}{'└── ' if last else '├── '}{each.__name__}")
        lines += _drawn_below(each, indent + ("    " if last else "│   "))
    return lines


def test_the_tree_in_the_docstring_is_that_of_the_classes() -> None:
    for module in pkgutil.walk_packages(clipfarm_dagster.__path__, "clipfarm_dagster."):
        importlib.import_module(module.name)
    assert errors.__doc__ is not None
    tree = errors.__doc__[errors.__doc__.index("ClipFarmError") :].splitlines()

    assert tree == [errors.ClipFarmError.__name__, *_drawn_below(errors.ClipFarmError)]


@pytest.mark.parametrize(
    "error",
    [
        errors.LedgerError("the disk is full"),
        errors.MetadataError("s3://bucket/a.csv", "unusable", line=3, column="title"),
        errors.ObjectMissingError("s3://bucket", "a/key"),
        errors.StoreUnavailableError("no way there", problem="no way", code="503"),
        errors.DriftError("it moved", stage="text", step="tokens"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_another_process_says_the_same_here(error: errors.ClipFarmError) -> None:
    came = pickle.loads(pickle.dumps(error))

    assert (type(came), str(came), vars(came)) == (type(error), str(error), vars(error))
