"""Where a trial actor and its worker group meet: the job, its reports, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from orchestrator.slots.messages import Job, Report


class Mailbox:
    """Async actor between a trial actor and its worker group. It holds the job, so a restarted group finds it."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._job: Job | None = None  # None between two jobs
        self._at_work = False  # whether a group has taken the job
        self._stop = False  # whether the job is to stop
        self._reports: list[Report] = []  # of which the trial actor has not heard
        self._outcome: Report | None = None  # the last report of a job that has ended
        self._met: set[int] = set()  # ranks whose job has met an error
        self._closed = False

    async def start(self, job: Job) -> None:
        """Trial actor: here is the next job."""
        async with self._change():
            self._job, self._at_work, self._stop = job, False, False
            self._reports, self._outcome = [], None

    async def take(self, seconds: float) -> Report | None:
        """Trial actor: the next report, the one of how the job ended after the others; None if there is none yet."""
        async with self._change():
            if not await self._within(seconds, lambda: self._reports or self._outcome):
                return None if self._at_work else {"waiting": True, "done": False}
            return self._reports.pop(0) if self._reports else self._outcome

    async def halt(self, seconds: float) -> bool:
        """Trial actor: stop the current job. Answers "has the group?", after `seconds` at the latest."""
        async with self._change():
            self._stop = True
            if not self._at_work:
                self._job = None
        async with self._changed:
            return await self._within(seconds, lambda: self._job is None)

    async def close(self) -> None:
        """Trial actor: there will be no more jobs."""
        async with self._change():
            self._closed = True

    async def next_job(self) -> Job | None:
        """Rank 0: wait for a job; None means go home."""
        async with self._change():
            if self._stop:
                self._job = None  # a group that was started again need not begin what is to stop
        async with self._changed:
            self._met.clear()
            await self._changed.wait_for(lambda: self._closed or self._job)
            self._at_work = True
            return None if self._closed else self._job

    async def report(self, report: Report) -> bool:
        """Rank 0: one epoch is done. Answers "stop?" once it is taken: no group is two epochs ahead of the driver."""
        async with self._change():
            if self._stop or not self._at_work:
                return True
            self._reports.append(report)
        async with self._changed:
            await self._changed.wait_for(lambda: self._stop or not self._at_work or not self._reports)
            return self._stop or not self._at_work

    async def met(self, rank: int, of: int, seconds: float) -> bool:
        """Any rank: its job has met an error. Answers "every rank's?", after `seconds` at the latest."""
        async with self._change():
            self._met.add(rank)
        async with self._changed:
            return await self._within(seconds, lambda: len(self._met) == of)

    async def finish(self, outcome: Report) -> None:
        """Some rank: the job has ended; `outcome` is its last report, with an error if there was one."""
        async with self._change():
            if self._at_work:  # else it is another job by now: two ranks met an error, and others did not
                self._job, self._at_work, self._outcome = None, False, outcome

    async def lost(self) -> None:
        """Train: the group is gone. Another one will take the job, if there is room for it."""
        async with self._change():
            self._at_work = False

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """Change something inside; whoever waits looks again afterwards."""
        async with self._changed:
            yield
            self._changed.notify_all()

    async def _within(self, seconds: float, condition: Callable[[], Any]) -> bool:
        """Wait for a condition, the lock being held; returns whether it came true in time."""
        try:
            await asyncio.wait_for(self._changed.wait_for(condition), seconds)
        except TimeoutError:
            return False
        return True
