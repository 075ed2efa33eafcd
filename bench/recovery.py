"""From the exception to the verified answer, and the same runbook through a stock Prefect process worker.

Fault: a report that runs past its statement timeout; timeout_increase repairs it, the failed request is replayed as
evidence. Timed in the application, from the moment the view raises to the moment its answer leaves.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psycopg
from prefect.client.orchestration import get_client

from bench.figures import Figure, median, percentile
from bench.stack import Stack, process, wait_for

RECOVERIES = 40
STOCK_RUNS = 3


def _end_directives(stack: Stack) -> None:
    """Take every directive back, so that the fault is there again, and wait until each process has reverted."""
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("UPDATE upright.directive SET withdrawn_at = now() WHERE withdrawn_at IS NULL")
        connection.execute("UPDATE upright.service_version SET version = version + 1")
        connection.execute("SELECT pg_notify('upright', 'bench service:default:bench')")

    def there() -> bool:
        """In both workers, told without another error."""
        seen = [httpx.get(f"{stack.patient}/timeout/", timeout=10).json() for _ in range(8)]
        return {one["statement_timeout"] for one in seen} == {"40ms"} and len({one["pid"] for one in seen}) == 2

    wait_for(there, "the fault")


def _recover(stack: Stack) -> tuple[float, dict[str, object]]:
    response = httpx.get(f"{stack.patient}/report/", headers={"accept": "application/json"}, timeout=10)
    return float(response.headers["x-bench-ms"]), response.json()


async def _tasks_recorded(stack: Stack, flow_run_id: UUID) -> list[str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    async with get_client() as client:
        runs = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
        return [run.name for run in runs]


async def _stock_worker(stack: Stack, error_id: str, deployment: str, log: Path) -> float:
    """Seconds from creating a run of the same deployment to its end, when a stock process worker executes it. The
    worker has a queue of its own, so that the service leaves the run to it."""
    async with get_client() as client:
        from prefect.client.schemas.actions import WorkPoolCreate

        pool = f"stock-{uuid4().hex[:8]}"
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        original = await client.read_deployment_by_name(deployment)
        copy = await client.create_deployment(
            flow_id=original.flow_id,
            name="stock",
            entrypoint=original.entrypoint,
            path=original.path,
            pull_steps=original.pull_steps,
            work_pool_name=pool,
            parameter_openapi_schema=original.parameter_openapi_schema,
        )
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        with process(command, stack.environment, log):
            took: list[float] = []
            for _ in range(STOCK_RUNS + 1):
                began = time.monotonic()
                run = await client.create_flow_run_from_deployment(copy, parameters={"error_id": error_id})
                while True:
                    run = await client.read_flow_run(run.id)
                    if run.state is not None and run.state.is_final():
                        break
                    if time.monotonic() - began > 90:
                        raise RuntimeError(f"the stock worker did not finish a run; see {log}")
                    await asyncio.sleep(0.05)
                took.append(time.monotonic() - began)
        return median(took[1:])


def measure(stack: Stack) -> dict[str, Figure]:
    times: list[float] = []
    refused = 0
    error_id = ""
    for _ in range(RECOVERIES + 2):
        _end_directives(stack)
        took, answer = _recover(stack)
        recovery = answer["recovery"]
        assert isinstance(recovery, dict)
        if recovery.get("status") != "recovered" or recovery.get("success") is not True:
            refused += 1
            continue
        error_id = str(answer["error"]["error_id"])  # type: ignore[index]
        times.append(took)
    if refused or len(times) < RECOVERIES:
        raise RuntimeError(f"{refused} of {RECOVERIES + 2} errors were not recovered: no figure")
    times = times[2:]
    half = len(times) // 2
    noise = abs(median(times[:half]) - median(times[half:]))
    with psycopg.connect(stack.database_url) as connection:
        row = connection.execute(
            "SELECT flow_run_id, runbook FROM upright.recovery WHERE error_id = %s ORDER BY created_at DESC LIMIT 1",
            [error_id],
        ).fetchone()
    if row is None:
        raise RuntimeError("the last recovery is not in the store")
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: stack.prefect_api}):
        wait_for(lambda: len(asyncio.run(_tasks_recorded(stack, row[0]))) >= 4, "the run's tasks in Prefect", 30)
        log = Path("/tmp") / f"stock-worker-{uuid4().hex[:8]}.log"  # noqa: S108 (kept for a failure's sake)
        stock_s = asyncio.run(_stock_worker(stack, error_id, f"{row[1]}/{row[1]}", log))
        log.unlink(missing_ok=True)
    p50, p95 = percentile(times, 50), percentile(times, 95)
    peer = "stock Prefect process worker"
    return {
        "recovery_p50_ms": Figure(round(p50, 1), "ms", round(stock_s * 1000), round(noise, 1), peer, "≤ 400"),
        "recovery_p95_ms": Figure(round(p95, 1), "ms", round(stock_s * 1000), round(noise, 1), peer, "≤ 1000"),
        "stock_worker_ratio": Figure(round(stock_s * 1000 / p50, 1), "×", None, None, "", "≥ 20"),
    }
