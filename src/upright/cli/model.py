"""`upright model`: what scores, training it, and deciding by hand."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from upright.adapters.models import ModelLibrary
from upright.cli.context import Project, settings_for
from upright.cli.output import AsJson, console, print_json, table
from upright.config import Settings
from upright.errors import ConfigurationError
from upright.services.learning.ports import ModelVersion, Use, VersionStore
from upright.services.learning.training import Trained

app = typer.Typer(help="Show, train and choose the model that scores strategies.", no_args_is_help=True)
Tenant = Annotated[str, typer.Option(help="Whose model.")]
Result = TypeVar("Result")


@app.command()
def status(project: Project = None, tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """What scores now, why, and which versions there are."""
    settings = settings_for(project)

    async def read(library: ModelLibrary, store: VersionStore) -> tuple[Use, list[ModelVersion], str]:
        use = (await store.model_uses()).get(tenant, Use())
        problem = ""
        if use.uses == "challenger" and use.version is not None:
            problem = await library.problem(tenant, use.version)
        return use, list(await store.versions(tenant)), problem

    use, versions, problem = _with_library(settings, read)
    allowed = {"off": "priors", "beta": "beta"}.get(settings.learning, use.uses)
    if as_json:
        print_json(
            {
                "tenant": tenant,
                "uses": use.uses,
                "version": use.version,
                "who": use.who,
                "why": use.why,
                "since": use.since,
                "learning": settings.learning,
                "problem": problem,
                "versions": [_as_json(one) for one in versions],
            }
        )
        return
    what = f"model {use.version}" if use.uses == "challenger" else use.uses
    console.print(f"Tenant {tenant} scores with [bold]{what}[/].", end=" ")
    console.print(f"{use.who}: {use.why}" if use.why else "Nothing else was chosen.", markup=False)
    if allowed != use.uses:
        console.print(f"UPRIGHT_LEARNING={settings.learning} allows {allowed} at most.")
    if problem:
        console.print(f"[bold red]Model {use.version} can't be used:[/] ", end="")
        console.print(problem, markup=False)
    rows = [
        (
            one.version,
            f"{one.created_at:%Y-%m-%d %H:%M}",
            one.outcomes,
            "passed" if one.evaluation.get("passed") else "refused",
            f"{one.promoted_at:%Y-%m-%d %H:%M}" if one.promoted_at else "",
        )
        for one in versions
    ]
    table(("version", "trained", "outcomes", "gate", "promoted"), rows, empty="No versions; Beta learns all the same.")


@app.command()
def train(
    project: Project = None,
    tenant: Tenant = "default",
    promote: Annotated[bool, typer.Option("--promote", help="Let it act if the gate lets it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a new version from all verified outcomes. It does not act before it is promoted."""
    settings = settings_for(project)

    async def work(library: ModelLibrary, store: VersionStore) -> tuple[ModelVersion, Trained]:
        version, trained = await library.train(tenant)
        if promote and trained.evaluation.passed:
            version = await library.promote(tenant, version.version, who=_who())
        return version, trained

    version, trained = _with_library(settings, work)
    if as_json:
        print_json(_as_json(version))
        return
    console.print(f"Model {version.version} from {version.outcomes} outcomes.")
    _tell(trained)
    if version.promoted_at is not None:
        console.print("It acts from now on.")


@app.command()
def evaluate(project: Project = None, tenant: Tenant = "default", as_json: AsJson = False) -> None:
    """What the gate would say of a model that is trained now. Keeps nothing."""
    settings = settings_for(project)

    async def work(library: ModelLibrary, store: VersionStore) -> Trained:
        return await library.evaluate(tenant)

    trained = _with_library(settings, work)
    if as_json:
        print_json({"outcomes": trained.outcomes, **trained.evaluation.as_json()})
    else:
        console.print(f"{trained.outcomes} outcomes.")
        _tell(trained)


@app.command()
def promote(
    version: Annotated[int, typer.Argument(min=1)],
    project: Project = None,
    tenant: Tenant = "default",
    force: Annotated[bool, typer.Option("--force", help="Against the gate.")] = False,
) -> None:
    """Let a version act. Every process of the service follows within seconds."""

    async def work(library: ModelLibrary, store: VersionStore) -> None:
        await library.promote(tenant, version, who=_who(), force=force)

    _with_library(settings_for(project), work)
    console.print(f"Model {version} acts from now on.")


@app.command()
def rollback(
    project: Project = None,
    tenant: Tenant = "default",
    to: Annotated[str, typer.Option(help="priors, beta, or the number of an earlier version.")] = "beta",
    why: Annotated[str, typer.Option(help="For the audit trail.")] = "rolled back by hand",
) -> None:
    """Take the acting version back. `--to priors` switches all learning off."""
    if to not in ("priors", "beta") and not to.isdecimal():
        raise ConfigurationError(f"--to is priors, beta, or a version's number, not {to!r}.")

    async def work(library: ModelLibrary, store: VersionStore) -> None:
        if to == "priors" or to == "beta":
            await store.use_model(tenant, "priors" if to == "priors" else "beta", None, who=_who(), why=why)
            return
        found = await library.version(tenant, int(to))
        if found.promoted_at is None:
            raise ConfigurationError(f"Model {to} has never acted; `upright model promote {to}` lets it.")
        await library.promote(tenant, found.version, who=_who(), force=True)

    _with_library(settings_for(project), work)
    console.print(f"Tenant {tenant} scores with {f'model {to}' if to.isdecimal() else to} from now on.")


def _tell(trained: Trained) -> None:
    found = trained.evaluation
    if found.passed:
        console.print(
            f"The gate lets it: it saves {found.difference:.1%} of the time to recovery, {found.lower:.1%} at least; "
            f"Brier score {found.brier_challenger:.4f}, Beta's {found.brier_incumbent:.4f}."
        )
    else:
        console.print("The gate refuses it:")
        for why in found.refusals:
            console.print(f"  {why}", markup=False)


def _as_json(version: ModelVersion) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(version)


def _with_library(settings: Settings, work: Callable[[ModelLibrary, VersionStore], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        from upright import bootstrap

        async with bootstrap.library(settings) as (library, store):
            return await work(library, store)

    return asyncio.run(run())


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "command line"
