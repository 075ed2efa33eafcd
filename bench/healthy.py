"""Cost of the middleware on a healthy request, beside sentry-sdk's Django integration with a local sink.

Run as `python -m bench.healthy VARIANT INTERFACE`, it prints one JSON list of µs a request; `measure()` runs the
variants in turn, each in a process of its own, since sentry-sdk patches Django for good.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import time

from bench.figures import Figure, median

VARIANTS = ("bare", "again", "upright", "sentry")
REQUESTS = 1500
ROUNDS = 5


def _configure(variant: str) -> None:
    import django
    from django.conf import settings

    middleware = ["error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"] if variant == "upright" else []
    settings.configure(
        DEBUG=False,
        SECRET_KEY="bench",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="bench.healthy_urls",
        MIDDLEWARE=middleware,
        INSTALLED_APPS=["error_logging"] if variant == "upright" else [],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        UPRIGHT_URL="http://127.0.0.1:9",
        UPRIGHT_SECRET="whsec_" + "A" * 43 + "=",
        UPRIGHT_AGENT=False,
    )
    if variant == "sentry":
        import sentry_sdk
        from sentry_sdk.transport import Transport

        class Sink(Transport):
            def capture_envelope(self, envelope: object) -> None:
                pass

        sentry_sdk.init(dsn="http://key@127.0.0.1/1", transport=Sink, traces_sample_rate=0)
    django.setup()


def _environ() -> dict[str, object]:
    return {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/", "SCRIPT_NAME": "", "QUERY_STRING": "", "SERVER_NAME": "bench",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }  # fmt: skip


def _wsgi() -> list[float]:
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()

    def once() -> float:
        environ = _environ()
        began = time.perf_counter_ns()
        response = application(environ, lambda *_: None)
        b"".join(response)
        response.close()
        return (time.perf_counter_ns() - began) / 1000

    for _ in range(300):
        once()
    return [once() for _ in range(REQUESTS)]


def _asgi() -> list[float]:
    from django.core.asgi import get_asgi_application

    application = get_asgi_application()
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/async/",
        "raw_path": b"/async/", "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(b"host", b"bench")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip

    async def once() -> float:
        done = asyncio.Event()
        sent = False

        async def receive() -> dict[str, object]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(_: object) -> None:
            pass

        began = time.perf_counter_ns()
        await application(dict(scope), receive, send)
        took = (time.perf_counter_ns() - began) / 1000
        done.set()
        return took

    async def run() -> list[float]:
        for _ in range(300):
            await once()
        return [await once() for _ in range(REQUESTS)]

    return asyncio.run(run())


def measure() -> dict[str, Figure]:
    """healthy_wsgi_p50_us and healthy_asgi_p50_us: µs that the middleware adds to a request."""
    figures = {}
    for interface, limit in (("wsgi", 20), ("asgi", 50)):
        medians: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(ROUNDS):
            for variant in VARIANTS:
                command = [sys.executable, "-m", "bench.healthy", variant, interface]
                output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
                medians[variant].append(median(json.loads(output.splitlines()[-1])))
        added = {
            variant: median([one - bare for one, bare in zip(medians[variant], medians["bare"], strict=True)])
            for variant in VARIANTS
        }
        figures[f"healthy_{interface}_p50_us"] = Figure(
            round(added["upright"], 2), "µs", round(added["sentry"], 2), round(abs(added["again"]), 2),
            "sentry-sdk", f"≤ {limit} above noise",
        )  # fmt: skip
    return figures


if __name__ == "__main__":
    _configure(sys.argv[1])
    print(json.dumps(_wsgi() if sys.argv[2] == "wsgi" else _asgi()))
