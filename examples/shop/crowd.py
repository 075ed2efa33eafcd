"""Clients that all ask at once, and go on asking: `python crowd.py BASE_URL CLIENTS SECONDS`; prints what came of it.

Each client has one connection and asks again as soon as it has its answer.
"""

import http.client
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

PATHS = ("/orders/stock/", "/orders/recent/")


@dataclass
class Tally:
    requests: int = 0
    failed: int = 0
    recovered: int = 0
    """Failed requests whose own operation is known to work again."""
    first_failure_s: float | None = None
    last_failure_s: float | None = None
    worked_since: int = 0
    """Requests that began after the last failure was answered, all of which worked."""
    example: dict = field(default_factory=dict)
    """A failed answer: the one that says most of its recovery."""


@dataclass(frozen=True)
class Answered:
    began_s: float
    ended_s: float
    path: str
    status: int
    body: dict


def crowd(base_url: str, clients: int, seconds: float) -> Tally:
    address = urlsplit(base_url)
    start = time.monotonic()
    answers: list[Answered] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        path = PATHS[number % len(PATHS)]
        while time.monotonic() - start < seconds:
            began = time.monotonic() - start
            try:
                connection.request("GET", f"{path}?client={number}", headers={"Accept": "application/json"})
                response = connection.getresponse()
                status, raw = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status, raw = 0, json.dumps({"error": {"type": type(error).__name__}}).encode()
            try:
                body = json.loads(raw)
            except ValueError:
                body = {"text": raw[:200].decode(errors="replace")}
            answers.append(Answered(began, time.monotonic() - start, path, status, body))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally(answers)


def tally(answers: list[Answered]) -> Tally:
    failures = sorted((one for one in answers if one.status != 200), key=lambda one: one.ended_s)
    result = Tally(requests=len(answers), failed=len(failures))
    if not failures:
        result.worked_since = len(answers)
        return result
    reports = [one.body.get("recovery", {}) for one in failures]
    result.recovered = sum(1 for report in reports if report.get("success"))
    result.first_failure_s = round(failures[0].ended_s, 2)
    result.last_failure_s = round(failures[-1].ended_s, 2)
    result.worked_since = sum(1 for one in answers if one.began_s > failures[-1].ended_s)
    telling = max(
        failures,
        key=lambda one: (bool(one.body.get("recovery", {}).get("success")), len(json.dumps(one.body))),
    )
    result.example = {"path": telling.path, "status": telling.status, "body": telling.body}
    return result


if __name__ == "__main__":
    print(json.dumps(asdict(crowd(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
