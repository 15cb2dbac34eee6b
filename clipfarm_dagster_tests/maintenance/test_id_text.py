"""Ids are found as wholes and replaced, and what only looks like them stays."""

from __future__ import annotations

import json

import pytest

from clipfarm_dagster.maintenance.id_text import IdText, is_word

IDS = IdText({"a1": "T1", "b-2.x": "T2", "success": "T3"}, {"a12", "xa1", "a1.b", "b-2"})


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("a1", "T1"),
        ("a12 xa1 a1-a1_ a1", "a12 xa1 a1-a1_ T1"),
        ("the video a1.", "the video T1."),
        ("raw/video/a1.mp4, .a1.npy.part", "raw/video/T1.mp4, .T1.npy.part"),
        ("a1.b a1.b.npy a1.c", "a1.b a1.b.npy T1.c"),
        ("b-2 b-2.x b-2.xy b-2.x.npy", "b-2 T2 b-2.xy T2.npy"),
        ("a1...a12, a12...a1", "T1...a12, a12...T1"),
        ("['a1', 'a12']", "['T1', 'a12']"),
        ("2 failed.\\na1: fail: x", "2 failed.\\nT1: fail: x"),
        ("\x1b[34ma1\x1b[0m", "\x1b[34mT1\x1b[0m"),
        ("status success, 'success'", "status success, 'success'"),
        ("video_id 'success' and video_id=success", "video_id 'T3' and video_id=T3"),
        ("x\nsuccess: fail: bad", "x\nT3: fail: bad"),
        ("success: 3 of 4", "success: 3 of 4"),
        ("embeddings/success/a12.npy raw/text/success.json", "embeddings/success/a12.npy raw/text/T3.json"),
        ("/src/success.py", "/src/success.py"),
        ("ä a1 ö", "ä T1 ö"),
        ("." * 1000, "." * 1000),
    ],
)
def test_free_text(text: str, replaced: str):
    assert IDS.replaced(text) == replaced


def test_json_keeps_its_form_down_to_json_in_strings_of_json():
    inner = {"version": 1, "subset": ["a12", "a1", "success"], "status": "success"}
    outer = {
        "__class__": "a1",
        "n": 1.50,
        "nested": json.dumps(inner),
        "message": "failed:\na1: fail",
        "video_ids": ["success", "a1"],
        "status": "success",
        "a1": "ü",
    }
    text = json.dumps(outer)

    replaced = IDS.replaced_value(text)

    del outer["a1"]
    expected = outer | {
        "nested": json.dumps({"version": 1, "subset": ["a12", "T1", "T3"], "status": "success"}),
        "message": "failed:\nT1: fail",
        "video_ids": ["T3", "T1"],
        "T1": "ü",
    }
    assert replaced == json.dumps(expected)
    compact = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
    assert IDS.replaced_value(compact) == json.dumps(expected, separators=(",", ":"), ensure_ascii=False)


def test_a_text_without_ids_stays_as_it_is():
    for text in ('{"a12":  1 }', "[broken a12", "", "{}", '{"a": "success"}'):
        assert IDS.replaced_value(text) == text


def test_a_field_of_ids_holds_nothing_else():
    assert IDS.replaced_value("success", "partition") == "T3"
    assert IDS.replaced_value("success", "dagster/partition") == "T3"
    assert IDS.replaced_value("success", "status") == "success"


@pytest.mark.parametrize("word", ["a", "video", "Success", "MISSING", "raw_video", "DagsterEvent", "42"])
def test_words(word: str):
    assert is_word(word)


@pytest.mark.parametrize("video_id", ["a1", "dQw4w9WgXcQ", "qWxEzRtYuIo", "v0001", "12345", "clip-1", "x.y"])
def test_ids_that_are_no_words(video_id: str):
    assert not is_word(video_id)


def test_what_is_shown_has_no_id_at_all():
    assert IDS.masked("/a1/success/a12/a1.npy") == "/T1/T3/a12/T1.npy"
