"""The library: versions of a tenant's model. The database has the truth, with the file's digest and a copy of it; the
project's models/ has the files that people look at and keep."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from upright.adapters.models.challenger_file import dump, load
from upright.domain.message import Json
from upright.errors import NotFound, UprightError
from upright.services.learning.challenger import Challenger
from upright.services.learning.episode import Episode
from upright.services.learning.estimate import Prior
from upright.services.learning.policy import ESCALATION_S
from upright.services.learning.ports import ModelRefused, ModelVersion, Outcome, VersionStore
from upright.services.learning.training import Trained, card, fit

logger = logging.getLogger("upright.learning")

MAX_EPISODES = 20_000


class ModelLibrary:
    def __init__(
        self, store: VersionStore, directory: Path, priors: Mapping[str, Prior], *, escalation_s: float = ESCALATION_S
    ) -> None:
        """`directory`: the project's models/. It may be read-only; the database then has what there is."""
        self._store, self._directory, self._priors = store, directory, priors
        self._escalation_s = escalation_s

    async def train(self, tenant: str) -> tuple[ModelVersion, Trained]:
        """A new version from all outcomes of the tenant. It does not act before it is promoted."""
        episodes = [one.episode for one in await self._outcomes(tenant)]
        trained = await _apart(episodes, self._priors, self._escalation_s)
        until = datetime.fromtimestamp(episodes[-1].at, UTC) if episodes else None
        version = await self._store.add_version(
            tenant,
            outcomes=trained.outcomes,
            trained_until=until,
            beta=trained.learned.beta.as_json(),
            evaluation=trained.evaluation.as_json(),
        )
        artifact = await asyncio.to_thread(dump, trained.challenger) if trained.challenger is not None else None
        digest = hashlib.sha256(artifact).hexdigest() if artifact is not None else ""
        text = card(
            version,
            tenant,
            trained,
            trained_until=until.isoformat(timespec="seconds") if until else "the beginning",
            software=_software(),
        )
        await self._store.complete_version(tenant, version, artifact=artifact, sha256=digest, card=text)
        found = await self.version(tenant, version)
        await asyncio.to_thread(self._write, found, artifact, trained.learned.beta.as_json())
        return found, trained

    async def evaluate(self, tenant: str) -> Trained:
        """What training would find now; nothing is kept."""
        episodes = [one.episode for one in await self._outcomes(tenant)]
        return await _apart(episodes, self._priors, self._escalation_s)

    async def promote(self, tenant: str, version: int, *, who: str, force: bool = False) -> ModelVersion:
        """Let a challenger act. Raises ModelRefused where the gate did, unless `force`, or it can't be loaded."""
        found = await self.version(tenant, version)
        if not found.sha256:
            raise ModelRefused(f"model {version} has no challenger: {_refusals(found)}")
        if not found.evaluation.get("passed") and not force:
            raise ModelRefused(f"the gate refuses model {version}: {_refusals(found)}")
        await self.challenger(tenant, version)
        why = "promoted by hand against the gate" if not found.evaluation.get("passed") else "promoted"
        await self._store.use_model(tenant, "challenger", version, who=who, why=why)
        return await self.version(tenant, version)

    async def version(self, tenant: str, version: int) -> ModelVersion:
        """Raises NotFound."""
        versions = await self._store.versions(tenant)
        for one in versions:
            if one.version == version:
                return one
        there = ", ".join(str(one.version) for one in versions) or "none"
        raise NotFound(f"tenant {tenant!r} has no model {version}; there are: {there}")

    async def promoted(self, tenant: str, before: int) -> Sequence[int]:
        versions = await self._store.versions(tenant)
        return [one.version for one in versions if one.promoted_at is not None and one.version < before]

    async def challenger(self, tenant: str, version: int) -> tuple[Challenger, datetime]:
        found = await self.version(tenant, version)
        if not found.sha256 or found.trained_until is None:
            raise ModelRefused(f"model {version} has no challenger")
        data = await asyncio.to_thread(self._read, found)
        if data is None:
            data = await self._store.artifact(tenant, version)
            if data is None or hashlib.sha256(data).hexdigest() != found.sha256:
                raise ModelRefused("its file, and the database's copy of it, are missing or damaged")
        return await asyncio.to_thread(load, data), found.trained_until

    async def problem(self, tenant: str, version: int) -> str:
        """Why a version can't be used, or ""."""
        try:
            await self.challenger(tenant, version)
        except UprightError as error:
            return str(error)
        return ""

    async def _outcomes(self, tenant: str) -> Sequence[Outcome]:
        return [one for one in await self._store.outcomes(None, MAX_EPISODES) if one.tenant == tenant]

    def path(self, version: ModelVersion, suffix: str) -> Path:
        # A tenant's name is configuration, and still no part of a path unless it is harmless.
        name = version.tenant if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", version.tenant) else ""
        name = name or hashlib.sha256(version.tenant.encode()).hexdigest()[:16]
        return self._directory / f"score-{name}-{version.version}{suffix}"

    def _read(self, version: ModelVersion) -> bytes | None:
        path = self.path(version, ".skops")
        try:
            data = path.read_bytes()
        except OSError:
            return None  # another host trained it
        if hashlib.sha256(data).hexdigest() == version.sha256:
            return data
        logger.error("%s is not the file that was trained; the database's copy is used instead.", path)
        return None

    def _write(self, version: ModelVersion, artifact: bytes | None, beta: Json) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if artifact is not None:
                self.path(version, ".skops").write_bytes(artifact)
            self.path(version, ".beta.json").write_text(json.dumps(beta, indent=1) + "\n")
            self.path(version, ".md").write_text(version.card)
        except OSError as error:
            logger.warning("Model %s is in the database only: %s", version.version, error)


async def _apart(episodes: Sequence[Episode], priors: Mapping[str, Prior], escalation_s: float) -> Trained:
    """In a process of its own, at low priority: recoveries go on meanwhile, and training is seconds of computing."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=os.nice, initargs=(10,)) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, _fit, episodes, dict(priors), escalation_s)


def _fit(episodes: Sequence[Episode], priors: Mapping[str, Prior], escalation_s: float) -> Trained:
    return fit(episodes, priors, escalation_s=escalation_s)


def _refusals(version: ModelVersion) -> str:
    found = version.evaluation.get("refusals")
    return "; ".join(str(one) for one in found) if isinstance(found, list) else "it was not evaluated"  # pyright: ignore


def _software() -> str:
    from importlib.metadata import version

    return f"upright {version('upright')}, scikit-learn {version('scikit-learn')}"
