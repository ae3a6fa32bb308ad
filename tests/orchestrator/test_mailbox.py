"""What a trial actor and its worker group say to each other, whichever of them is late, alone or gone."""

from __future__ import annotations

import asyncio

import torch

from orchestrator.slots.group_slot import patience
from orchestrator.slots.mailbox import Mailbox
from orchestrator.slots.messages import record_of, report_of
from tests.orchestrator.made_up import record
from trainers.config import parse
from trainers.diagnostics.overfitting import onsets
from trainers.totals import Diverged

JOB, NEXT, FAILURE = {"key": "a"}, {"key": "b"}, {"failure": "out of memory", "done": True}


async def at_work() -> Mailbox:
    mailbox = Mailbox()
    await mailbox.start(JOB)
    assert await mailbox.next_job() == JOB
    return mailbox


def test_an_error_that_every_rank_meets_is_known_as_such_and_one_that_a_rank_meets_alone() -> None:
    async def check() -> None:
        mailbox = await at_work()
        assert await asyncio.gather(mailbox.met(0, 2, 60), mailbox.met(1, 2, 60)) == [True, True]
        mailbox = await at_work()
        assert not await mailbox.met(1, 2, 0.01)
        await mailbox.finish(FAILURE)
        assert await mailbox.take(60) == FAILURE

    asyncio.run(check())


def test_a_group_that_is_gone_says_nothing_about_the_next_job() -> None:
    async def check() -> None:
        mailbox = await at_work()
        assert not await mailbox.met(1, 2, 0.01)
        await mailbox.finish(FAILURE)
        await mailbox.start(NEXT)
        assert await mailbox.report({"epoch": 5})  # a late rank 0 is told to stop
        await mailbox.finish(FAILURE)  # another rank was alone with an error too
        assert await mailbox.take(0.01) == {"waiting": True, "done": False}
        assert await mailbox.next_job() == NEXT
        assert await mailbox.take(0.01) is None
        assert not await mailbox.met(0, 2, 0.01)

    asyncio.run(check())


def test_a_job_that_no_group_has_begun_is_halted_at_once_and_never_begun() -> None:
    async def check() -> None:
        mailbox = Mailbox()
        await mailbox.start(JOB)
        assert await mailbox.halt(0.01)
        mailbox = await at_work()
        await mailbox.lost()
        assert await mailbox.take(0.01) == {"waiting": True, "done": False}
        assert await mailbox.halt(0.01)
        mailbox = await at_work()
        assert not await mailbox.halt(0.01)
        waiting = asyncio.create_task(mailbox.next_job())  # the group was started again
        assert await mailbox.halt(60)
        await mailbox.start(NEXT)
        assert await waiting == NEXT

    asyncio.run(check())


def test_a_group_goes_on_when_its_report_was_taken_and_the_next_waits_for_the_decision_on_it() -> None:
    """So it is an epoch ahead of the driver, however short its epochs, and hears of a stop at the end of that one."""

    async def check() -> None:
        mailbox = await at_work()
        first = asyncio.create_task(mailbox.report({"epoch": 0}))
        done, _ = await asyncio.wait([first], timeout=0.05)
        assert not done
        assert await mailbox.take(60) == {"epoch": 0}
        assert not await first
        following = asyncio.create_task(mailbox.report({"epoch": 1}))  # while the driver thinks about epoch 0
        done, _ = await asyncio.wait([following], timeout=0.05)
        assert not done
        assert not await mailbox.halt(0.01)
        assert await following

    asyncio.run(check())


def test_what_a_dead_rank_may_have_caused_is_waited_for_longer() -> None:
    closed_by_peer = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    for alone in (ValueError(), OSError(), torch.OutOfMemoryError(), Diverged()):
        assert patience(alone) < patience(closed_by_peer)


def test_an_epoch_is_told_by_what_is_shown_of_it_and_by_what_onsets_are_found_by() -> None:
    whole = [record(epoch, 5, 0.2) for epoch in range(8)]
    told = [record_of(report_of(one, 8)) for one in whole]
    assert all(
        one is not None and len(one.metrics) == 7 < len(full.metrics) for one, full in zip(told, whole, strict=True)
    )
    assert [one.metrics["val/clean_accuracy"] for one in told if one] == [
        r.metrics["val/clean_accuracy"] for r in whole
    ]
    found = onsets([one for one in told if one], parse({}))
    assert found == onsets(whole, parse({}))
    assert found[0].epoch == 5
    assert [report_of(one, 8)["done"] for one in whole] == [False] * 7 + [True]
    assert record_of({"failure": "no memory", "done": True}) is None
