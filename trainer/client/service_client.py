"""A client of the training service: what its API offers, as Python."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.validation import validated
from schemas.records import EvalRecord, StepRecord
from schemas.service import (
    Artifact,
    Estimate,
    RunEvent,
    RunPage,
    RunState,
    ServiceRun,
    ServiceState,
    ServiceStore,
    Submission,
)
from trainer.client.answers import as_schema
from trainer.client.connection import Connection
from trainer.client.downloads import download
from trainer.client.event_stream import EventStream
from trainer.client.read_spec import Spec, spec_values
from trainer.client.service_address import read_token, service_address

PAGE = 200  # runs that are asked for at once
# The first report of a run is made when it is asked for.
REPORT_S = 600.0


class ServiceClient:
    """The training service of a team.

    Where the service does not answer, or answers that it is busy, the same is asked
    again for a while, as long as that is the same as asking once. What is submitted has
    a key of its own, so that a run is never submitted twice.

    Examples:
        >>> import trainer
        >>> service = trainer.ServiceClient()  # $ACTSTORE_SERVICE, $ACTSTORE_TOKEN
        >>> [run] = service.submit({"store": "stores/small", "rows": 2_000})
        >>> run.state
        'queued'
        >>> service.cancel(run.id).state
        'cancelled'
        >>> [event.kind for event in service.events(run.id)]
        ['queued', 'cancelled']
        >>> service.close()
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: The service's URL; None: $ACTSTORE_SERVICE. Plain http is taken on this
                machine only.
            token: The token; None: that of `token_file`, or $ACTSTORE_TOKEN.
            token_file: A file that holds the token.
            timeout_s: How long an answer may take, in seconds.
            patience_s: How long the same is asked again, in seconds.

        Raises:
            SpecError: The URL cannot be used.
            TokenError: There is no token.
        """
        address = service_address(url)
        self.url = address.url
        self._connection = Connection(
            address, read_token(token, token_file), timeout_s, patience_s
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    @checked(name=optional(arguments.text))
    def submit(
        self, spec: Spec, *, name: str | None = None, priority: int = 0
    ) -> list[ServiceRun]:
        """Submit a run, or all runs of a sweep.

        Args:
            spec: A TrainSpec or a SweepSpec, the same as keys and values, or a YAML
                file of them. A store's path is one of the service's machine.
            name: The name of the run's folder, or of the sweep's; None: the service's
                choice.
            priority: Runs of a higher one come first, -100 to 100.

        Returns:
            The runs.

        Raises:
            SpecError: The spec is not valid, or does not suit its store.
            ConflictError: There is a run of that name.
            ForbiddenError: The token is a reader's.
        """
        body = _submission(spec, name, priority, dry_run=False)
        key = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._connection.ask("POST", "/runs", body=body, headers=key)
        runs: list[ServiceRun] = as_schema(list[ServiceRun], answer)
        return runs

    @checked(name=optional(arguments.text))
    def estimate(self, spec: Spec, *, name: str | None = None) -> Estimate:
        """Return what training would take; nothing is submitted.

        Args:
            spec: As in `submit`.
            name: As in `submit`.

        Raises:
            SpecError: As in `submit`.
        """
        body = _submission(spec, name, 0, dry_run=True)
        answer = self._connection.ask("POST", "/runs", body=body)
        found: Estimate = as_schema(Estimate, answer)
        return found

    @checked(
        states=arguments.texts,
        user=optional(arguments.text),
        sweep=optional(arguments.text),
        text=optional(arguments.text),
    )
    def runs(
        self,
        states: RunState | Sequence[RunState] = (),
        *,
        user: str | None = None,
        sweep: str | None = None,
        text: str | None = None,
    ) -> Iterator[ServiceRun]:
        """Yield runs, newest first; pages of them are asked for as they are needed.

        Args:
            states: Only runs in these states; none: in any.
            user: Only this user's.
            sweep: Only this sweep's.
            text: Only those that have it in their name, sweep or user.
        """
        query: list[tuple[str, str]] = [("state", state) for state in states]
        given = {"user": user, "sweep": sweep, "text": text}
        query += [(key, value) for key, value in given.items() if value is not None]
        query.append(("limit", str(PAGE)))
        after: str | None = None
        while True:
            more = [] if after is None else [("after", after)]
            page: RunPage = self._get(RunPage, f"/runs?{urlencode(query + more)}")
            yield from page.runs
            # A page that leads to itself would be asked for without end.
            if page.next is None or page.next == after:
                return
            after = page.next

    @checked(run=arguments.text)
    def run(self, run: str) -> ServiceRun:
        """Return a run.

        Args:
            run: Its id.

        Raises:
            UnknownRunError: There is none.
        """
        found: ServiceRun = self._get(ServiceRun, _path(run))
        return found

    @checked(run=arguments.text, after=arguments.count_from_0, follow=arguments.flag)
    def events(
        self, run: str, *, after: int = 0, follow: bool = True
    ) -> Iterator[RunEvent]:
        """Yield what happens to a run, until it has ended.

        A connection that breaks, or a service that is started anew, is waited for:
        every event comes once.

        Args:
            run: Its id.
            after: The id of the last event that is known.
            follow: Whether to wait for those that are still to come.

        Raises:
            UnknownRunError: There is no such run.
            UnreachableError: The service does not come back.
        """
        stream = EventStream(self._connection, _path(run, "events"), after)
        return stream.events(follow=follow)

    @checked(run=arguments.text)
    def journal(self, run: str, *, after_step: int = -1) -> list[StepRecord]:
        """Return the records of a run's journal behind a step."""
        path = f"{_path(run, 'journal')}?after_step={after_step}"
        found: list[StepRecord] = self._get(list[StepRecord], path)
        return found

    @checked(run=arguments.text)
    def evaluation(self, run: str) -> EvalRecord | None:
        """Return how good a run's SAE is; None where it was not evaluated yet."""
        path = _path(run, "evaluation")
        found: EvalRecord | None = self._get(EvalRecord | None, path)
        return found

    @checked(run=arguments.text)
    def cancel(self, run: str) -> ServiceRun:
        """Cancel a run; one that is being trained is saved first.

        Raises:
            ConflictError: It has ended.
        """
        return self._change(run, "cancel")

    @checked(run=arguments.text)
    def resume(self, run: str) -> ServiceRun:
        """Queue a run that was cancelled or has failed; it goes on where it was saved.

        Raises:
            ConflictError: It is in another state.
        """
        return self._change(run, "resume")

    @checked(run=arguments.text, name=arguments.text)
    def publish(self, run: str, name: str) -> ServiceRun:
        """Publish a completed run in the service's catalog.

        Args:
            run: Its id.
            name: Its name there, with a tag behind a colon if you like.

        Raises:
            ConflictError: It is not completed, or there is no catalog.
        """
        return self._change(run, "publish", {"name": name})

    def stores(self) -> list[ServiceStore]:
        """Return the stores that runs may be trained from."""
        found: list[ServiceStore] = self._get(list[ServiceStore], "/stores")
        return found

    def state(self) -> ServiceState:
        """Return the service as a whole: where runs are trained, how many there are."""
        found: ServiceState = self._get(ServiceState, "/state")
        return found

    @checked(run=arguments.text)
    def report(self, run: str) -> str:
        """Return the report of a completed run: a page of HTML.

        Raises:
            ConflictError: The run is not completed.
        """
        answer = self._connection.ask("GET", _path(run, "report"), timeout_s=REPORT_S)
        return answer.data.decode("utf-8", "replace")

    @checked(run=arguments.text)
    def artifacts(self, run: str) -> list[Artifact]:
        """Return the files of a run's folder."""
        found: list[Artifact] = self._get(list[Artifact], _path(run, "artifacts"))
        return found

    @checked(run=arguments.text, key=arguments.text, out=optional(arguments.folder))
    def download(
        self, run: str, key: str, out: str | os.PathLike[str] | None = None
    ) -> Path:
        """Write a file of a run's folder to this machine.

        It is there once it is whole.

        Args:
            run: The run's id.
            key: The file's key, as `artifacts` has it.
            out: The path to write to; None: the key's last part, in the current folder.

        Returns:
            The path.

        Raises:
            ExistsError: Something is there.
            UnknownRunError: There is no such run or file.
        """
        path = Path(out if out is not None else key.rpartition("/")[2])
        where = f"{_path(run, 'artifacts')}/{quote(key, safe='/')}"
        return download(self._connection, where, path)

    def _get(self, kind: Any, path: str) -> Any:
        return as_schema(kind, self._connection.ask("GET", path))

    def _change(self, run: str, what: str, body: Any = None) -> ServiceRun:
        answer = self._connection.ask(
            "POST", _path(run, what), body=body, may_repeat=False
        )
        changed: ServiceRun = as_schema(ServiceRun, answer)
        return changed


def _submission(
    spec: Spec, name: str | None, priority: int, *, dry_run: bool
) -> dict[str, Any]:
    """Return what is sent, checked as far as it can be here."""
    values = {"spec": spec_values(spec), "name": name, "priority": priority}
    options = {"name": "--name", "priority": "--priority"}
    submission = validated(
        Submission, {**values, "dry_run": dry_run}, "the submission", options
    )
    return submission.model_dump(mode="json")


def _path(run: str, what: str = "") -> str:
    """Return where a run is; what the user gives as its id stays one part of it."""
    path = f"/runs/{quote(run, safe='')}"
    return f"{path}/{what}" if what else path
