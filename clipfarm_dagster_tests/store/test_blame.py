"""Whose trouble an error with one key is."""

from __future__ import annotations

import pytest

from clipfarm_dagster.store.blame import is_own_trouble


@pytest.mark.parametrize(
    ("code", "others_work", "own"),
    [
        ("AccessDenied", True, True),
        ("AccessDenied", False, False),
        ("AccessDenied", None, False),
        ("InvalidObjectState", None, True),
        ("KMS.DisabledException", False, True),
        ("ExpiredToken", True, False),
        ("SignatureDoesNotMatch", True, False),
        (None, True, True),
        (None, False, False),
        (None, None, False),
    ],
)
def test_is_the_keys_own_where_others_work_or_s3_says_so(code: str, others_work: bool, own: bool):
    assert is_own_trouble(code, others_work) == own
