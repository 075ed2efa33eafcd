"""The page that a signed link leads to: `GET` shows what is asked, `POST` decides. A mail scanner that follows links
decides nothing."""

from __future__ import annotations

import html
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from upright.adapters.intake.gate import read
from upright.adapters.store import PostgresStore
from upright.config import Settings
from upright.errors import NotFound, RequestRefused
from upright.services.guardrails import Approval, links

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
}
_LONGEST_NAME, _LONGEST_WHY = 200, 2000

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; color: #1a1a1a }}
table {{ border-collapse: collapse }} td {{ padding: .2rem 1rem .2rem 0; vertical-align: top }}
label {{ display: block; margin: 1rem 0 .2rem }} input {{ font: inherit; width: 100%; padding: .4rem }}
button {{ font: inherit; padding: .5rem 1.5rem; margin: 1.5rem 1rem 0 0 }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


class ApprovalPage:
    def __init__(self, store: PostgresStore, settings: Settings) -> None:
        secret = settings.approval_secret
        self._store = store
        self._secret = None if secret is None else secret.get_secret_value()

    def add_to(self, api: APIRouter) -> None:
        path = "/approve/{token}"
        api.add_api_route(path, self.show, methods=["GET"], include_in_schema=False)
        api.add_api_route(path, self.decide, methods=["POST"], include_in_schema=False)

    async def show(self, token: str) -> HTMLResponse:
        try:
            question = await self._question(token)
        except NotFound as error:
            return _page("Not found", f"<p>{html.escape(str(error))}</p>", 404)
        return _shown(question)

    async def decide(self, request: Request, token: str) -> HTMLResponse:
        try:
            question = await self._question(token)
            form = parse_qs((await read(request)).decode("utf-8", "replace"), keep_blank_values=True)
        except NotFound as error:
            return _page("Not found", f"<p>{html.escape(str(error))}</p>", 404)
        except RequestRefused as error:
            return _page("Not understood", f"<p>{html.escape(str(error))}</p>", error.status)
        by, why, decision = (form.get(name, [""])[0].strip() for name in ("by", "why", "decision"))
        if question.status != "waiting":
            return _shown(question, 409)
        if not by or decision not in ("approve", "reject"):
            return _shown(question, 400, "Your name is needed, and a decision.")
        answer = await self._store.decide(
            question.id,
            approve=decision == "approve",
            by=_line(by)[:_LONGEST_NAME],
            via="link",
            why=_line(why)[:_LONGEST_WHY],
        )
        return _shown(answer)

    async def _question(self, token: str) -> Approval:
        if self._secret is None:
            raise NotFound("This link is not valid.")
        return await self._store.approval(links.opened(self._secret, token))


def _line(value: str) -> str:
    return value.replace("\x00", "\ufffd")


def _shown(question: Approval, status: int = 200, problem: str = "") -> HTMLResponse:
    facts = [
        ("Service", question.service),
        ("Runbook", question.runbook),
        ("Would be done", question.plan),
        *((name, str(value)) for name, value in question.values.items()),
        ("Until", f"{question.expires_at:%Y-%m-%d %H:%M:%S %Z}"),
    ]
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts)
    said = ""
    if question.status == "waiting":
        said = f"<p><strong>{html.escape(problem)}</strong></p>" if problem else ""
        said += (
            '<form method="post"><label for="by">Your name</label>'
            f'<input id="by" name="by" required maxlength="{_LONGEST_NAME}" autocomplete="name">'
            f'<label for="why">Why (optional)</label><input id="why" name="why" maxlength="{_LONGEST_WHY}">'
            '<button name="decision" value="approve">Approve</button>'
            '<button name="decision" value="reject">Reject</button></form>'
        )
    elif question.status == "expired":
        said = "<p><strong>Nobody answered in time; it is not done.</strong></p>"
    else:
        why = f": {question.why}" if question.why else ""
        said = f"<p><strong>{html.escape(f'{question.status.title()} by {question.decided_by}{why}')}</strong></p>"
    return _page(f"{question.strategy.replace('_', ' ').title()}", f"<table>{rows}</table>{said}", status)


def _page(title: str, body: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(_PAGE.format(title=html.escape(title), body=body), status, _HEADERS)
