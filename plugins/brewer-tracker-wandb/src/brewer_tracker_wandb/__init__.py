"""The tracker `wandb`: a run's figures for Weights & Biases, kept in the run's folder until they are synced."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from brewer_core import RequestError, component, hookimpl

if TYPE_CHECKING:
    import wandb

FLUSH_INTERVAL_S = 1.0
RUN_ID = "wandb/run-id"
"""Where the folder of a stage keeps the id of its run."""
REPORTING = "WANDB_ERROR_REPORTING"
Tag: TypeAlias = Annotated[str, Field(min_length=1, max_length=64)]


@component(name="Weights & Biases")
class WeightsAndBiases:
    """Curves for Weights & Biases: a run of it for each stage and baseline, named RUN/STAGE; offline unless told otherwise.

    Its files are in `wandb/` of the stage's folder, as those of `tensorboard` are in theirs. What is logged at one step is one
    row there, so a row is written when the next step is logged or the tracker is closed; a process that is killed outright
    loses its last row and what came in the last second.

    A stage that is taken up again goes on with its run of wandb, by the id that its folder keeps. wandb takes nothing back, so
    the steps between the checkpoint and the kill stay as they were logged first: `online` passes over them when they come
    again; offline they are told again in a second file of the same run.

    Each tracker has a run to itself, whatever other runs of wandb the process has. Neither code, git, requirements, the
    machine's state nor what is printed is recorded. wandb's reports on its own errors, for which it looks up a host even
    offline, are left out unless WANDB_ERROR_REPORTING is set.

    Raises RequestError where wandb refuses to begin: without an account in `online` mode, for example.
    """

    def __init__(
        self,
        run_dir: Path,
        stage: str,
        *,
        project: Annotated[
            str, Field(pattern=r"^[^/\\#?%:]+$", max_length=128, description="The project that the runs belong to.")
        ] = "brewer",
        entity: Annotated[
            str | None, Field(description="The user or team that owns the project; null for the account's own.")
        ] = None,
        mode: Annotated[
            Literal["offline", "online", "disabled"],
            Field(
                description="offline keeps everything in the run's folder, for `wandb sync`; online sends it as it comes and "
                "needs an account; disabled does nothing."
            ),
        ] = "offline",
        group: Annotated[
            str | None, Field(min_length=1, description="What the stages are grouped by; null for the run's folder.")
        ] = None,
        tags: Annotated[tuple[Tag, ...], Field(description="Words to find the runs by.")] = (),
    ) -> None:
        import wandb

        name, folder = run_dir.resolve().name, _folder(run_dir, stage)
        former = (
            _former(folder) if stage else None
        )  # without a stage the folder is the user's, with runs of any training
        with _without_reports():
            try:
                self._run = wandb.init(
                    project=project,
                    entity=entity,
                    mode=mode,
                    group=group or name,
                    tags=tags,
                    name=f"{name}/{stage}" if stage else name,
                    id=former or secrets.token_hex(4),  # stages would share the one of WANDB_RUN_ID
                    resume="allow" if former else None,
                    dir=folder,
                    reinit="create_new",  # leaves the process's other runs alone
                    settings=_settings(),
                )
            except wandb.Error as error:
                raise RequestError(
                    f'tracker `wandb`: {str(error).rstrip(".")}; mode is "{mode}", and "offline" needs neither an account nor a '
                    "network."
                ) from error
        if stage and mode != "disabled":
            (folder / RUN_ID).write_text(f"{self._run.id}\n", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add figures to the row of a step. Steps only go up: wandb drops what is logged at an earlier one."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left, and finish the run."""
        self._run.finish()


@hookimpl
def brewer_trackers() -> dict[str, type]:
    """The tracker of this plugin."""
    return {"wandb": WeightsAndBiases}


def _folder(run_dir: Path, stage: str) -> Path:
    """The folder of a stage or of a baseline; without a stage the run's own."""
    folder = run_dir / (stage if "/" in stage else f"stages/{stage}") if stage else run_dir
    folder.mkdir(parents=True, exist_ok=True)  # wandb would write elsewhere
    return folder


def _former(folder: Path) -> str | None:
    """The id of the run that a stage has had, where it was interrupted."""
    file = folder / RUN_ID
    written = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    return written or None


def _settings() -> wandb.Settings:
    """No word on the console, and nothing recorded but what is logged."""
    import wandb

    recorded: dict[str, Any] = {
        "console": "off",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    return wandb.Settings(silent=True, x_transaction_log_flush_interval=FLUSH_INTERVAL_S, **recorded)


@contextmanager
def _without_reports() -> Iterator[None]:
    """What begins inside sends no reports of wandb's own errors, unless the user has decided on them."""
    if REPORTING in os.environ:
        yield
        return
    os.environ[REPORTING] = "false"
    try:
        yield
    finally:
        del os.environ[REPORTING]
