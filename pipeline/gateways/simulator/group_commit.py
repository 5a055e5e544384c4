"""One thread that commits the writes of many waiting requests together.

A sync to disk costs as much as dozens of small writes, so everything that waits goes into one
transaction, and nobody is answered before it is durable.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.gateways.simulator.books import Books

# Writes in one transaction: about 30 us each, so a full batch delays its first by some 15 ms.
BATCH_MAX = 512

_Result = TypeVar("_Result")
_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class GroupCommit:
    """Runs write jobs on the books in its own thread; belongs to the running event loop.

    What waits is bounded by the caller: one job per open HTTP request.
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="books-writer", daemon=True)
        self._thread.start()

    async def submit(self, job: Callable[[], _Result]) -> _Result:
        """Run the job in a transaction; returns when it is committed.

        If any job of the transaction raises, or the commit does, nothing of it was written and all
        of its submitters get the error.
        """
        future: asyncio.Future[_Result] = self._loop.create_future()
        self._jobs.put((job, future))
        return await future

    async def close(self) -> None:
        """Commit what was submitted, end the thread and close the books."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._books.close()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch: list[_Job] = []
            waiting: _Job | None = self._jobs.get()
            while waiting is not None:
                batch.append(waiting)
                if len(batch) == BATCH_MAX:
                    break
                try:
                    waiting = self._jobs.get_nowait()
                except queue.Empty:
                    break
            ended = waiting is None
            if batch:
                outcomes = self._commit(batch)
                self._loop.call_soon_threadsafe(_resolve, outcomes)

    def _commit(self, batch: list[_Job]) -> list[_Outcome]:
        try:
            self._books.begin()
            outcomes: list[_Outcome] = [(future, job(), None) for job, future in batch]
            self._books.commit()
        except Exception as error:
            self._books.rollback()
            return [(future, None, error) for _, future in batch]
        return outcomes


def _resolve(outcomes: list[_Outcome]) -> None:
    for future, result, error in outcomes:
        if future.done():
            continue  # its request was cancelled; the write stands all the same
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
