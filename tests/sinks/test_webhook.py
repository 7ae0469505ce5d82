"""The webhook sink with a real HTTP receiver that is slow, down, wrong, or redirects."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from streamd.errors import SinkError
from streamd.sinks.events import JournalEvent
from streamd.sinks.webhook import WebhookSettings, WebhookSink, judge, key_of, signature
from tests.events.journals import until
from tests.events.test_record import RECORD
from tests.sinks.brokers import certificate, in_order
from tests.sinks.delivery import assert_in_order, interrupted, rig
from tests.sinks.receivers import Answer, Receiver, Request


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.down()


def settings(receiver: Receiver, path: str = "/hook?t=1", **more: Any) -> WebhookSettings:
    return WebhookSettings(url=f"http://127.0.0.1:{receiver.port}{path}", **{"max_per_s": 10_000, **more})


class ReceiverReader:
    """Reads what arrived at a receiver."""

    def __init__(self) -> None:
        self.receiver = Receiver()

    def begin(self, sink: Any) -> None: ...

    def all(self, count: int) -> list[Any]:
        raise AssertionError("takes events only")

    def events(self, count: int) -> list[dict[str, Any]]:
        until(lambda: len(self.receiver.accepted) >= count)
        return self.receiver.accepted

    def close(self) -> None:
        self.receiver.down()


def contract(folder: Path) -> tuple[WebhookSettings, ReceiverReader]:
    """See tests/sinks/test_contract.py."""
    reader = ReceiverReader()
    return settings(reader.receiver), reader


def test_the_signature_is_that_of_standard_webhooks() -> None:
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}') == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    ), "the specification's own example"


def test_events_arrive_signed_on_one_connection(tmp_path: Path, receiver: Receiver) -> None:
    key = "a key that somebody typed"
    with rig(tmp_path, settings(receiver, signing_key=key, bearer_token="token-1234")) as running:
        running.submit(40)
        running.wait_delivered(40)
    assert in_order(receiver.accepted) == {f"s{i}": list(range(1, 11)) for i in range(4)}
    assert receiver.connections == 1
    first = receiver.requests[0]
    assert first.path == "/hook?t=1"
    assert first.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert first.headers["authorization"] == "Bearer token-1234"
    assert first.headers["webhook-id"] == json.loads(first.body)["id"]
    stamp = int(first.headers["webhook-timestamp"])
    assert abs(stamp - time.time()) < 60
    assert first.headers["webhook-signature"] == signature(key.encode(), first.headers["webhook-id"], stamp, first.body)


@pytest.mark.parametrize(
    ("status", "outcome", "why"),
    [
        (200, "delivered", ""),
        (204, "delivered", ""),
        (400, "refused", "answers 400 Bad Request"),
        (422, "refused", "answers 422 Unprocessable"),
        (401, None, "rejects us, answers 401 Unauthorized; check bearer_token"),
        (404, None, "rejects us, answers 404 Not Found; check url"),
        (429, None, "is busy, answers 429 Too Many Requests"),
        (503, None, "fails, answers 503 Service Unavailable"),
        (799, None, "answers 799, which is no status of HTTP"),
    ],
)
def test_answers_are_told_apart(status: int, outcome: str | None, why: str) -> None:
    verdict = judge(status, None, 0.0)
    assert verdict.outcome == outcome
    assert verdict.why.startswith(why)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (formatdate(1000, usegmt=True), 100.0),
        (formatdate(0, usegmt=True), 0.0),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert judge(503, header, 900.0).retry_after_s == seconds


def test_a_receiver_that_is_down_again_and_again_gets_everything_in_order(tmp_path: Path, receiver: Receiver) -> None:
    killed(tmp_path, receiver, 2, 80)


def killed(folder: Path, receiver: Receiver, outages: int, events: int) -> list[dict[str, Any]]:
    """So many events, while the receiver goes down so often; it also hangs up without an answer now and then."""
    seen = 0

    def answer(_: Request) -> Answer:
        nonlocal seen
        seen += 1
        return Answer(hang_up=seen % 37 == 0)

    receiver.answer = answer
    with rig(folder, settings(receiver)) as running:
        interrupted(
            running, outages, events, down=receiver.down, up=receiver.up, arrived=lambda: len(receiver.accepted),
            noticed=lambda why: "is down" in why,
        )  # fmt: skip
    assert_in_order(receiver.accepted, events)
    return receiver.accepted


def test_a_slow_receiver_is_told_from_one_that_is_down(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(after_s=1.5)
    with rig(tmp_path, settings(receiver, timeout_s=0.3)) as running:
        running.submit(1)
        until(lambda: running.thread.unreachable is not None)
        assert "is slow: no answer within 0.3 s" in (running.thread.unreachable or "")
        receiver.answer = lambda _: Answer(drip=True)
        before = len(receiver.requests)
        until(lambda: len(receiver.requests) > before)
        errors = running.value("streamd_sink_errors_total")
        until(lambda: running.value("streamd_sink_errors_total") > errors, 10)
        assert "is slow" in (running.thread.unreachable or ""), "each byte in time, but no answer"
        receiver.answer = lambda _: Answer()
        running.wait_delivered(1)
        assert running.thread.unreachable is None


def test_an_event_that_is_refused_does_not_hold_up_the_next(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda r: Answer(422 if json.loads(r.body)["data"]["id"] == "e1" else 204)
    with rig(tmp_path, settings(receiver)) as running:
        running.submit(3, streams=1)
        until(lambda: running.counts().delivered == 2)
        assert running.counts() == (3, 0, 2, 1, 0, 0)
    assert [e["data"]["event_seq"] for e in receiver.accepted] == [1, 3]


def test_retry_after_is_respected(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(429, {"Retry-After": "2"}) if len(receiver.requests) == 1 else Answer()
    with rig(tmp_path, settings(receiver)) as running:
        running.submit(1)
        until(lambda: running.thread.unreachable is not None)
        began = time.monotonic()
        running.wait_delivered(1)
        assert time.monotonic() - began > 1.5


def test_redirects_stay_with_the_host(tmp_path: Path, receiver: Receiver) -> None:
    other = Receiver()
    receiver.answer = lambda r: Answer(307, {"Location": "/new"}) if r.path == "/old" else Answer()
    with rig(tmp_path / "same", settings(receiver, "/old")) as running:
        running.submit(1)
        running.wait_delivered(1)
    assert [r.path for r in receiver.requests] == ["/old", "/new"]
    receiver.answer = lambda _: Answer(307, {"Location": f"http://127.0.0.1:{other.port}/"})
    with rig(tmp_path / "other", settings(receiver, bearer_token="secret-token")) as running:
        running.submit(1)
        until(lambda: running.thread.unreachable is not None)
        assert "redirects to another host" in (running.thread.unreachable or "")
        assert running.counts().queued == 1
        receiver.answer = lambda _: Answer(302, {"Location": "/"})
        until(lambda: "not followed with POST" in (running.thread.unreachable or ""))
        receiver.answer = lambda _: Answer(308, {"Location": "/loop"})
        until(lambda: "more than 3 times" in (running.thread.unreachable or ""))
    assert other.requests == []
    other.down()


@pytest.mark.parametrize("place", ["http://[half", "/caf\xe9"])
def test_a_redirect_to_what_is_no_url_is_an_answer(receiver: Receiver, place: str) -> None:
    receiver.answer = lambda _: Answer(307, {"Location": place})
    sink = WebhookSink(settings(receiver))
    sink.open()
    with pytest.raises(SinkError, match=r"redirects \(307\) to what is no URL"):
        sink.deliver([JournalEvent(RECORD, "box")])
    sink.close()


def test_requests_to_a_host_are_limited_for_all_its_sinks(tmp_path: Path, receiver: Receiver) -> None:
    slow, fast = settings(receiver, "/a", max_per_s=20), settings(receiver, "/b")
    with rig(tmp_path / "a", slow) as one, rig(tmp_path / "b", fast) as other:
        began = time.monotonic()
        one.submit(10)
        other.submit(10)
        one.wait_delivered(10)
        other.wait_delivered(10)
        assert time.monotonic() - began >= 19 / 20


def test_a_wait_for_the_receiver_does_not_hold_up_the_end(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(after_s=20)
    with rig(tmp_path, settings(receiver, timeout_s=60)) as running:
        running.submit(1)
        until(lambda: receiver.requests)
        began = time.monotonic()
        assert running.thread.close(2)
        assert time.monotonic() - began < 3
        assert running.counts().queued == 1


def test_the_receiver_s_certificate_is_verified(tmp_path: Path) -> None:
    both = certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    receiver = Receiver(context=context)
    url = f"https://127.0.0.1:{receiver.port}/"
    with rig(tmp_path / "a", WebhookSettings(url=url)) as running:
        running.submit(1)
        until(lambda: running.thread.unreachable is not None)
        assert "CERTIFICATE_VERIFY_FAILED" in (running.thread.unreachable or "")
    assert receiver.requests == []
    with rig(tmp_path / "b", WebhookSettings(url=url, tls={"ca": f"{both}.crt"})) as running:
        running.submit(3)
        running.wait_delivered(3)
    receiver.down()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "http://user:password@host/"}, "should match pattern"),
        ({"url": "ftp://host/"}, "should match pattern"),
        ({"url": "http://host/", "signing_key": "short"}, "at least 16"),
    ],
)
def test_wrong_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WebhookSettings(**fields)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"url": "http://host:99999/"}, "expected a port"),
        ({"url": "http://host/", "tls": {}}, "is for https only"),
        ({"url": "https://host/", "tls": {"key": "k.pem"}}, "needs both certificate and key"),
        ({"url": "https://host/", "signing_key": "whsec_not base64 at all"}, "expected base64"),
    ],
)
def test_settings_that_do_not_fit_are_named(fields: dict[str, Any], problem: str) -> None:
    assert any(problem in text for _, text in WebhookSettings(**fields).check())


def test_a_missing_authority_is_named(tmp_path: Path) -> None:
    sink = WebhookSettings(url="https://host/", tls={"ca": str(tmp_path / "none.pem")}).open()
    with pytest.raises(SinkError, match=r"none\.pem.*expected a PEM file"):
        sink.open()


def test_no_secret_of_the_url_is_shown(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(500)
    with rig(tmp_path, settings(receiver, "/bot123456:token/send")) as running:
        running.submit(1)
        until(lambda: running.thread.unreachable is not None)
        assert "bot123456" not in (running.thread.unreachable or "")
