"""Dagster marks observable source assets and backfill policies as beta; they are used knowingly."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import dagster as dg

P = ParamSpec("P")
T = TypeVar("T")


def accept_beta(define: Callable[P, T]) -> Callable[P, T]:
    """Define an asset without Dagster's warnings that some of its parameters are beta."""

    @functools.wraps(define)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> T:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            return define(*args, **kwargs)

    return quietly
