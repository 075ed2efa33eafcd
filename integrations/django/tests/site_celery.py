"""The test site's Celery application, and its worker: `python -m celery -A site_celery worker`."""

from __future__ import annotations

import os
import time

from celery import Celery

app = Celery("site", broker=os.environ.get("SITE_BROKER_URL"), backend=os.environ.get("SITE_BROKER_URL"))
app.conf.update(
    task_routes=("error_logging.celery.route", {"site.mail": {"queue": "mail"}}),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="site.chore")
def chore() -> None:
    time.sleep(0.03)


@app.task(name="site.price")
def price() -> int:
    return 42


@app.task(name="site.mail")
def mail() -> None: ...
