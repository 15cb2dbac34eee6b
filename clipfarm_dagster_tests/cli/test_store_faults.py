"""The command over an S3 server whose answers for single keys are broken by a proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from clipfarm_dagster_tests.support.s3_proxy import S3Proxy, refuse, s3_proxy
from workbench.seaweedfs import S3Server

pytestmark = pytest.mark.parametrize("store", ["s3"], indirect=True)

Command = Callable[..., Ended]

VIDEO_IDS = [f"clip-{number:03}" for number in range(41)]
FAULTY = "clip-020"


@pytest.fixture
def proxy(corpus: Corpus, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """41 transcripts, and from here on everything goes through the proxy."""
    put_metadata(corpus, [metadata_row(video_id) for video_id in VIDEO_IDS])
    for video_id in VIDEO_IDS:
        put_transcript(corpus, video_id, f"said in {video_id}")
    with s3_proxy(s3_environment) as running, monkeypatch.context() as through_it:
        through_it.setenv("AWS_ENDPOINT_URL", running.server.endpoint_url)
        yield running


def test_a_refused_object_fails_alone_and_waits_for_its_next_attempt(
    corpus: Corpus, clipfarm: Command, proxy: S3Proxy
):
    proxy.break_("GET", corpus.keys.raw(Stage.TEXT, FAULTY), refuse("InvalidObjectState"))

    first, second = (clipfarm("sync", "--stage", "text", "--json") for _ in range(2))

    counts = first.json["stages"]["text"]
    assert (first.code, counts["success"], counts["fail"]) == (1, 40, 1)
    assert second.json["stages"]["text"]["model_calls"] == 0
    assert (second.code, "fail" in second.json["stages"]["text"]) == (0, False), "it is not due yet"
    with corpus.ledger(Stage.TEXT) as ledger:
        row = ledger.rows([FAULTY])[FAULTY]
    assert (row.status, row.retry_count) == (Status.FAIL, 1)
    assert "InvalidObjectState" in (row.error or "")
    assert clipfarm("plan", "--stage", "text", "--json").json["stages"]["text"]["delta"] == 0


def test_the_sensor_goes_on_where_it_may_not_ask_for_a_missing_object(corpus: Corpus, proxy: S3Proxy):
    from clipfarm_dagster.orchestration.sensors.watching import found_objects

    key = corpus.keys.raw(Stage.TEXT, FAULTY)
    proxy.break_("HEAD", key, refuse("AccessDenied"))
    through_proxy = Corpus.open(corpus.settings)

    # as if it were there, so that the next plan lists the stage and knows
    assert found_objects(through_proxy, Stage.TEXT, ["clip-000", FAULTY, "not-there"]) == ["clip-000", FAULTY]
