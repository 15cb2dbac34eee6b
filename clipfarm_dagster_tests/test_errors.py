"""The tree at the head of `errors` is that of its classes."""

from __future__ import annotations

import inspect

from clipfarm_dagster import errors


def _classes_below(base: type[BaseException], found: list[type[BaseException]]) -> list[type[BaseException]]:
    """The classes of `found` that derive from `base` directly, in the order in which they are written."""
    return [each for each in found if each.__bases__ == (base,)]


def _drawn(base: type[BaseException], found: list[type[BaseException]], indent: str = "") -> list[str]:
    lines = []
    below = _classes_below(base, found)
    for each in below:
        last = each is below[-1]
        lines.append(f"{indent}{'└──' if last else '├──'} {each.__name__}")
        lines += _drawn(each, found, indent + ("    " if last else "│   "))
    return lines


def test_the_tree_in_the_docstring_is_that_of_the_classes():
    found = [
        each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__
    ]
    found.sort(key=lambda each: inspect.getsourcelines(each)[1])
    assert errors.__doc__ is not None
    tree = [line[4:] for line in errors.__doc__.splitlines() if line.startswith("    ")]

    assert tree == [errors.ClipFarmError.__name__, *_drawn(errors.ClipFarmError, found)]
    assert len(tree) == len(found)
