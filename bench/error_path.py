"""Time from a view's exception to the JSON answer when nobody waits for a recovery, in three states of the outside:
everything up, everything refusing connections, everything accepting them and staying silent.

Each case runs in a process of its own, which prints the ms of each request. The peer is sentry-sdk with a local sink.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.figures import Figure, median, percentile
from error_logging.testing import ScriptedService

REQUESTS = 400
GAP_S = 0.005
SECRET = "whsec_" + "A" * 43 + "="


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def silent_port() -> Iterator[int]:
    """Accepts connections and never says a word."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        for connection in held:
            connection.close()


def _run_case(variant: str, case: dict[str, object]) -> list[float]:
    import django
    from django.conf import settings

    upright = variant == "upright"
    settings.configure(
        DEBUG=False,
        SECRET_KEY="bench",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="bench.error_path_urls",
        MIDDLEWARE=["error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"] if upright else [],
        INSTALLED_APPS=["error_logging"] if upright else [],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": case["name"],
                "USER": "postgres",
                "HOST": case["host"],
                "PORT": case["port"],
            }
        },
        LOGGING={"version": 1, "disable_existing_loggers": True},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        ERROR_RECOVERY_TIMEOUT=0,
        UPRIGHT_URL=f"http://127.0.0.1:{case['service_port']}",
        UPRIGHT_SECRET=SECRET,
        UPRIGHT_AGENT=False,
        UPRIGHT_SPOOL_DIR=case["spool"],
    )
    if variant == "sentry":
        import sentry_sdk
        from sentry_sdk.transport import Transport

        class Sink(Transport):
            def capture_envelope(self, envelope: object) -> None:
                pass

        sentry_sdk.init(dsn="http://key@127.0.0.1/1", transport=Sink, traces_sample_rate=0)
    django.setup()
    if upright and case["migrate"]:
        from django.core.management import call_command

        call_command("migrate", verbosity=0)

    import logging

    from django.core.wsgi import get_wsgi_application

    from bench.healthy import _environ

    logging.disable(logging.CRITICAL)
    application = get_wsgi_application()
    times: list[float] = []
    for _ in range(REQUESTS):
        environ = _environ()
        began = time.perf_counter_ns()
        response = application(environ, lambda *_: None)
        b"".join(response)
        response.close()
        times.append((time.perf_counter_ns() - began) / 1e6)
        time.sleep(GAP_S)
    return times


def _in_process(variant: str, case: dict[str, object]) -> list[float]:
    command = [sys.executable, "-m", "bench.error_path", variant, json.dumps(case)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ, timeout=120)
    if done.returncode:
        raise RuntimeError(f"the error path case {case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(postgres_socket: str, database: str) -> dict[str, Figure]:
    """error_path_p50_ms and error_path_p99_ms: the worst of the three states, with each one's own figures beside."""
    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryDirectory())
        up = {"name": database, "host": postgres_socket, "port": "", "migrate": True}
        refusing = {"name": "shop", "host": "127.0.0.1", "port": str(closed_port()), "migrate": False}
        silent = {
            "name": "shop", "host": "127.0.0.1", "port": str(stack.enter_context(silent_port())), "migrate": False,
        }  # fmt: skip
        services = {
            "up": stack.enter_context(ScriptedService(secret=SECRET)).port,
            "refusing": closed_port(),
            "silent": stack.enter_context(silent_port()),
        }
        cases = {"up": up, "refusing": refusing, "silent": silent}
        times = {
            name: _in_process("upright", {**case, "service_port": services[name], "spool": f"{spool}/{name}"})
            for name, case in cases.items()
        }
        base = {**refusing, "service_port": services["refusing"], "spool": spool}
        bare, again, sentry = (_in_process(variant, base) for variant in ("bare", "bare", "sentry"))
    figures: dict[str, Figure] = {}
    for percent, limit in ((50, 3), (99, 15)):
        worst = max(percentile(values, percent) for values in times.values())
        noise = abs(percentile(bare, percent) - percentile(again, percent))
        peer = percentile(sentry, percent)
        figures[f"error_path_p{percent}_ms"] = Figure(
            round(worst, 3), "ms", round(peer, 3), round(noise, 3), "sentry-sdk, local sink", f"≤ {limit}"
        )
        for name, values in times.items():
            figures[f"error_path_{name}_p{percent}_ms"] = Figure(
                round(percentile(values, percent), 3), "ms", round(median(bare), 3), round(noise, 3), "bare Django"
            )
    return figures


if __name__ == "__main__":
    print(json.dumps(_run_case(sys.argv[1], json.loads(sys.argv[2]))))
