"""Messages to Slack: within its limits, to allowed hosts only, and nowhere the address of a webhook."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator

import pytest

from upright.adapters.slack import SlackWebhooks
from upright.errors import ChannelRefused, ConfigurationError, Unavailable
from upright.services.notice import Link, Notice, Part
from upright.testing.slack import SlackServer, problem, slack_server

NOTICE = Notice(
    "[critical] Not recovered: OperationalError in shop",
    (
        Part(("Not recovered. Recovery failed: Retry.",)),
        Part(("Retry: not recovered.", "  before {}"), "What was done"),
    ),
    (Link("The run in Prefect", "http://prefect/runs/1?a=1&b=2"),),
)


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    with slack_server() as server:
        yield server


@pytest.fixture
async def webhooks(slack: SlackServer) -> AsyncIterator[SlackWebhooks]:
    made = SlackWebhooks([slack.host])
    yield made
    made.close()


async def test_a_message_arrives_with_header_parts_and_links(slack: SlackServer, webhooks: SlackWebhooks) -> None:
    await webhooks.post(slack.url, NOTICE)
    [taken] = slack.messages
    assert taken["blocks"][0]["text"]["text"] == NOTICE.subject
    assert "*What was done*\n• Retry: not recovered.\n  before {}" in slack.text_of()
    assert "<http://prefect/runs/1?a=1&amp;b=2|The run in Prefect>" in slack.text_of()


@pytest.mark.parametrize(
    "notice",
    [
        Notice("x" * 1000, (Part(("<&>" * 9000,)),)),
        Notice("s", tuple(Part(tuple(f"{n} " + "y" * 400 for n in range(100)), "t" * 900) for _ in range(30))),
        Notice("s", (Part(("a part",)),) * 400, tuple(Link("l" * 500, f"http://x/{n}") for n in range(9))),
        Notice("s", (Part(("",)), Part((" ",)), Part((), "empty"))),
    ],
    ids=["long and escaped", "many lines", "many parts", "empty"],
)  # fmt: skip
async def test_whatever_it_holds_slack_takes_it(slack: SlackServer, webhooks: SlackWebhooks, notice: Notice) -> None:
    await webhooks.post(slack.url, notice)
    assert (len(slack.messages), slack.refused) == (1, [])
    assert all(f"http://x/{n}|" in slack.text_of() for n in range(len(notice.links)))


async def test_the_text_of_an_error_calls_nobody_and_links_nowhere(slack: SlackServer, webhooks: SlackWebhooks) -> None:
    await webhooks.post(slack.url, Notice("<!channel>", (Part(("<!here> <http://evil|click> & more",), "<@U1>"),)))
    told = slack.text_of() + slack.messages[0]["text"]
    assert "&lt;!here&gt; &lt;http://evil|click&gt; &amp; more" in told
    assert "&lt;@U1&gt;" in told
    assert slack.messages[0]["text"] == "&lt;!channel&gt;"


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ({}, "no_text"),
        ({"blocks": [{"type": "divider"}] * 51}, "invalid_blocks"),
        ({"blocks": [{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}]}, "invalid_blocks"),
        ({"blocks": [{"type": "header", "text": {"type": "mrkdwn", "text": "x"}}]}, "invalid_blocks"),
        ({"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}]}, "invalid_blocks"),
        ({"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": ""}}]}, "invalid_blocks"),
        ({"blocks": [{"type": "section"}]}, "invalid_blocks"),
        ({"blocks": [{"type": "video"}]}, "invalid_blocks"),
        ([], "invalid_payload"),
    ],
)
def test_the_server_refuses_what_slack_would(payload: object, why: str) -> None:
    assert (problem(payload) or "").startswith(why)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, ChannelRefused), (403, ChannelRefused), (404, ChannelRefused), (410, ChannelRefused),
     (429, Unavailable), (500, Unavailable), (503, Unavailable)],
)  # fmt: skip
async def test_what_may_pass_is_told_from_what_will_not(
    slack: SlackServer, webhooks: SlackWebhooks, status: int, error: type[Exception]
) -> None:
    slack.failing.append(status)
    with pytest.raises(error, match=f"answers {status}"):
        await webhooks.post(slack.url, NOTICE)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(slack: SlackServer, webhooks: SlackWebhooks, status: int) -> None:
    slack.failing.append(status)
    with pytest.raises(ChannelRefused, match=str(status)):
        await webhooks.post(slack.url, NOTICE)
    assert len(slack.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/latest/meta-data",
        "https://hooks.slack.com.evil.example/services/x",
        "https://hooks.slack.com@evil.example/services/x",
        "https://user:pass@hooks.slack.com/services/x",
        "https://hooks.slack.com:8443/services/x",
        "http://hooks.slack.com/services/x",
        "http://hooks.slack.com:443/services/x",
        "https://[::1/services/x",
        "https://localhost/services/x",
    ],
)
async def test_only_allowed_hosts_are_posted_to(url: str) -> None:
    webhooks = SlackWebhooks(["hooks.slack.com"])
    with pytest.raises(ChannelRefused) as refused:
        await webhooks.post(url, NOTICE)
    assert "/services" not in str(refused.value)
    webhooks.close()


@pytest.mark.parametrize("host", ["https://hooks.slack.com", "hooks.slack.com/services", "", "host:port", "a@b"])
def test_a_wrong_host_is_told(host: str) -> None:
    with pytest.raises(ConfigurationError, match="UPRIGHT_ALERT_HOSTS"):
        SlackWebhooks([host])


async def test_the_address_is_in_no_log_and_no_error(
    slack: SlackServer, webhooks: SlackWebhooks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = slack.url.rpartition("/services/")[2]
    await webhooks.post(slack.url, NOTICE)
    slack.failing.append(500)
    closed = SlackWebhooks(["127.0.0.1:9"])
    for one, url in ((webhooks, slack.url), (webhooks, f"{slack.url}/none"), (closed, f"http://127.0.0.1:9/{secret}")):
        with pytest.raises((Unavailable, ChannelRefused)) as failed:
            await one.post(url, NOTICE)
        assert secret not in str(failed.value)
        assert failed.value.__cause__ is None
    closed.close()
    assert secret not in caplog.text


async def test_an_https_peer_is_verified(slack: SlackServer) -> None:
    """A plain server is no TLS peer; what matters is that nothing is sent in the clear."""
    webhooks = SlackWebhooks([slack.host], trusted=ssl.create_default_context())
    with pytest.raises(Unavailable, match="can't be reached"):
        await webhooks.post(slack.url.replace("http://", "https://"), NOTICE)
    assert slack.messages == []
    webhooks.close()


def test_html_is_escaped_and_loads_nothing() -> None:
    page = Notice(
        "<script>", (Part(("<img src=x> & more",)), Part(("a\nb", "  under"), "What <b>failed</b>")),
        (Link('"quoted"', 'http://x/"onclick="'),),
    ).html()  # fmt: skip
    assert "<script>" not in page
    assert "&lt;img src=x&gt; &amp; more" in page
    assert "<li>a<br>b<br>under</li>" in page
    assert 'href="http://x/&quot;onclick=&quot;"' in page
    assert not any(word in page for word in ("<img", "<link", "url(", "@import"))
