"""Requests to the service: signed, bounded in time, and trusted only if their answers are proven.

What a scripted service does by itself is in test_scripted_service.py.
"""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from django.test import override_settings

from error_logging import client, counters, signatures
from error_logging.testing import (
    Reply,
    ScriptedService,
    garbage,
    pending,
    recovered,
    redirect,
    refusal,
    signed_for_another,
    unsigned,
)

EVENT = {"error_id": "11111111-1111-4111-8111-111111111111", "error": {"severity": "high"}, "message": "é"}
OTHER = "whsec_" + base64.b64encode(b"another secret of 32 bytes......").decode()


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with ScriptedService() as running, running.connected():
        yield running


def post(**more: Any) -> dict[str, Any]:
    return client.post("/v1/errors", EVENT, **{"timeout_s": 5, **more})


@contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says what `talk` sends, to each connection; what a client sent is read first."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        talk(connection)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client.reset()
        with override_settings(UPRIGHT_URL=f"http://127.0.0.1:{listening.getsockname()[1]}", UPRIGHT_SECRET=OTHER):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        client.reset()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_message_says_who_sends_it_and_is_signed_over_its_bytes(service: ScriptedService) -> None:
    with override_settings(UPRIGHT_TENANT="shop"):
        post(delivery_id="delivery-1", wait_ms=1500)
    (message,) = service.errors
    assert (message.delivery_id, message.tenant, message.wait_ms) == ("delivery-1", "shop", 1500)
    assert message.body == EVENT


def test_each_attempt_has_the_same_id_and_a_fresh_signature(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(delivery_id="delivery-1")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    service.on_error(pending())
    post(delivery_id="delivery-1")
    first, second = service.errors
    assert first.delivery_id == second.delivery_id
    assert second.timestamp - first.timestamp in (60, 61)
    assert first.signature != second.signature


def test_messages_without_an_id_get_one_each(service: ScriptedService) -> None:
    post()
    post()
    assert len({message.delivery_id for message in service.errors}) == 2


def test_the_first_secret_signs_and_all_are_accepted(service: ScriptedService) -> None:
    first = service.secret
    for known, secrets in ((first, [first, OTHER]), (OTHER, [OTHER, first])):
        service.secret = known
        with override_settings(UPRIGHT_SECRET=secrets):
            post()
    with override_settings(UPRIGHT_SECRET=[first, OTHER]), pytest.raises(client.Refused):
        post()


@pytest.mark.parametrize("untrue", [
    unsigned(recovered()), signed_for_another(recovered()), unsigned(refusal(404)), unsigned(refusal(410)),
    unsigned(refusal(403)), unsigned(refusal(400)),
])  # fmt: skip
def test_an_answer_that_is_not_proven_means_nothing(service: ScriptedService, untrue: Reply) -> None:
    """A proxy's 404 during a deployment must not have events thrown away."""
    service.on_error(untrue)
    with pytest.raises(client.Unreachable):
        post()
    assert not client.gone()


@pytest.mark.parametrize("away_s", [-301, 301])
def test_an_old_answer_is_refused(service: ScriptedService, monkeypatch: pytest.MonkeyPatch, away_s: int) -> None:
    real = signatures.headers

    def earlier(secret: str, message_id: str, body: bytes, *, now: float | None = None) -> dict[str, str]:
        # The service's thread signs its answer; this one its message.
        mine = threading.current_thread() is threading.main_thread()
        return real(secret, message_id, body, now=None if mine else time.time() + away_s)

    monkeypatch.setattr(signatures, "headers", earlier)
    with pytest.raises(client.Unreachable, match="300 s away"):
        post()


@pytest.mark.parametrize("status", [401, 413])
def test_what_the_service_refuses_before_it_knows_who_asks_is_refused(service: ScriptedService, status: int) -> None:
    service.on_error(unsigned(refusal(status, "no")))
    with pytest.raises(client.Refused, match="no") as refused:
        post()
    assert refused.value.status == status


def test_a_refusal_says_why_and_the_service_counts_as_there(service: ScriptedService) -> None:
    service.on_error(refusal(422, "severity is unknown"))
    with pytest.raises(client.Refused, match="422: severity is unknown"):
        post()
    assert client.available()


def test_after_a_410_nothing_more_is_sent_until_the_address_changes(service: ScriptedService) -> None:
    service.on_error(refusal(410))
    with pytest.raises(client.Gone):
        post()
    assert client.gone()
    assert not client.available()
    assert not client.probe_due()
    with override_settings(UPRIGHT_URL=service.url + "/base"):
        assert not client.gone()


def test_a_redirect_is_not_followed(service: ScriptedService) -> None:
    with ScriptedService(secret=service.secret) as elsewhere:
        service.on_error(redirect(elsewhere.url + "/v1/errors", 308))
        with pytest.raises(client.Unreachable, match="UPRIGHT_URL must be the final address"):
            post()
        assert elsewhere.received == []


@pytest.mark.parametrize(("header", "wanted"), [
    ("7", 7.0), (" 7 ", 7.0), ("99999999999999999999", 3600.0), ("0", 0.0), ("soon", None), ("-5", None), ("٣", None),
    ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None),
])  # fmt: skip
def test_retry_after(header: str, wanted: float | None) -> None:
    def busy(connection: socket.socket) -> None:
        text = f"HTTP/1.1 503 Busy\r\nRetry-After: {header}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(text.encode())

    with raw_server(busy), pytest.raises(client.Unreachable) as unreachable:
        post()
    assert unreachable.value.retry_after_s == wanted


def test_after_one_failure_no_request_waits_until_something_succeeded(service: ScriptedService) -> None:
    assert client.available()
    service.stop()
    with pytest.raises(client.Unreachable):
        post()
    assert not client.available()
    assert client.probe_due()
    assert not client.probe()
    service.start()
    assert not client.available()  # nobody has looked yet
    assert client.probe()
    assert client.available()
    assert not client.probe_due()


@pytest.mark.parametrize("unwell", [refusal(500), garbage()])
def test_a_service_that_answers_nonsense_is_not_waited_for(service: ScriptedService, unwell: Reply) -> None:
    service.on_error(unwell)
    with pytest.raises(client.Unreachable):
        post()
    assert not client.available()
    post()
    assert client.available()


def test_a_connection_that_the_service_closed_meanwhile_is_no_failure(service: ScriptedService) -> None:
    post()
    service.stop()
    service.start()
    assert post()["recovery"]["status"] == "pending"


def test_connections_are_kept(service: ScriptedService) -> None:
    for _ in range(5):
        post()
    assert client._manager().connection_from_url(service.url).num_connections == 1


def test_threads_at_once(service: ScriptedService) -> None:
    answers: list[str] = []

    def ask() -> None:
        answers.extend(post()["recovery"]["status"] for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["pending"] * 60


@pytest.mark.parametrize(("head", "piece"), [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
])  # fmt: skip
def test_a_body_that_trickles_ends_with_the_callers_time(head: bytes, piece: bytes) -> None:
    """The time limit of a single read never comes, and a request would be held for as long as the body lasts."""
    enough = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(250):
            connection.sendall(piece)
            if enough.wait(0.02):
                break

    with raw_server(trickle):
        with pytest.raises(client.Unreachable, match=r"did not end in time|timed out"):
            post(timeout_s=0.3)
        enough.set()


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with raw_server(flood), pytest.raises(client.Unreachable, match="longer than 1 MiB"):
        post()


@pytest.mark.parametrize("answer", [
    b"", b"HTTP/1.1", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 999999 ?\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
    b"\xff" * 100, b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
])  # fmt: skip
def test_whatever_comes_instead_of_an_answer_it_is_unreachable(answer: bytes) -> None:
    with raw_server(lambda connection: connection.sendall(answer)), pytest.raises(client.Unreachable):
        post()


def test_nobody_listens_and_no_such_host() -> None:
    for url in ("http://127.0.0.1:9", "http://nowhere.invalid", "http://" + "a" * 300 + ".invalid"):
        client.reset()
        with override_settings(UPRIGHT_URL=url, UPRIGHT_SECRET=OTHER), pytest.raises(client.Unreachable):
            post(timeout_s=2)
    client.reset()


def test_without_settings_nothing_is_sent() -> None:
    with pytest.raises(client.Unreachable, match="are not set"):
        post()


def test_failures_are_counted(service: ScriptedService) -> None:
    before = counters.snapshot().get("service_unreachable", 0)
    service.on_error(refusal(500))
    with pytest.raises(client.Unreachable):
        post()
    assert counters.snapshot()["service_unreachable"] == before + 1


def test_a_forked_child_has_connections_and_a_judgement_of_its_own(service: ScriptedService) -> None:
    post()
    service.always(refusal(500))
    with pytest.raises(client.Unreachable):
        post()
    service.always(None)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if client.available() and post()["recovery"]["status"] == "pending":
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not client.available()
    post()  # the parent's own connection still works
