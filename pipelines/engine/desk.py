"""The desk of a step: takes calls of its network from all workers and deals them out to actors.

    workers --ask--> Desk --up to ``batch`` of a kind--> Holder (the network, once)
       ^                                                    |
       +---------------- the answer, node to node ----------+

Arguments and answers lie in Ray's object store and do not pass the desk. A worker waits for its
answer, so there are never more clips on their way than workers. An actor that dies is started
again, and what it held is asked again, one call at a time: only a call that kills an actor by
itself, ``DEATHS`` times, is given up, and its neighbours are not blamed.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manifests.steps import Step
from pipelines.engine.networks import call

DEATHS = 2
AHEAD = 2  # batches at an actor: one runs, the arguments of the next are on their way
PATIENCE = 5.0  # seconds for a desk to say how it is
WAITING = 60.0  # seconds between two lines about actors that have no place yet
AGAIN = 1.0  # seconds between two looks at an actor that is starting again

Answer = tuple[str, Any]  # "is", "error" or "stop", and what


class Holder:
    """An actor: a network, made at its first call. More than one, if a step has more."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}
        self._busy, self._first, self._last = 0.0, 0.0, 0.0

    def ready(self) -> None:
        """Says that it is there."""

    def answer(self, about: bytes, name: str, *given: Any) -> tuple[Any, ...]:
        """One ``Answer`` for each (arguments, named) of a method, and None at the end."""
        begin = time.perf_counter()
        try:
            thing = self._thing(about)
        except Exception as error:
            text = f"a network does not start on {socket.gethostname()}: {error}"
            return (*[("stop", text)] * len(given), None)
        made = time.perf_counter()
        answers = self._together(thing, name, given) if len(given) > 1 else None
        if answers is None:
            answers = [_answer(thing, name, *each) for each in given]
        self._last = time.perf_counter()
        if not self._first:
            self._first, begin = made, made
        self._busy += self._last - begin
        return (*answers, None)

    def _thing(self, about: bytes) -> Any:
        # Of a worker of this job, as all that Ray brings; equal ones may have other bytes.
        make, arguments = wanted = pickle.loads(about)
        if wanted not in self._made:
            self._made[wanted] = make(*arguments)
        return self._made[wanted]

    @staticmethod
    def _together(thing: Any, name: str, given: tuple[Any, ...]) -> list[Answer] | None:
        """By the network's own method for many calls; None without one, and where it fails."""
        many = getattr(thing, f"{name.strip('_')}_many", None)
        if many is None or any(named for _, named in given):
            return None
        try:
            return [("is", found) for found in many([arguments for arguments, _ in given])]
        except Exception:
            return None

    def busy(self) -> tuple[float, float]:
        """Seconds of work, and from the first work to the end of the last; loading is neither."""
        return self._busy, self._last - self._first


def _answer(thing: Any, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Answer:
    try:
        return "is", call(thing, name, arguments, named)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return "error", RuntimeError(f"{type(error).__name__}: {error}")
        return "error", error


@dataclass(eq=False)
class _Call:
    about: bytes
    name: str
    given: Any  # a reference
    answer: asyncio.Future[Any]
    alone: bool = False
    deaths: int = 0

    @property
    def kind(self) -> tuple[bytes, str]:
        return self.about, self.name


@dataclass(eq=False)
class _Place:
    """An actor. held: batches that it has; kind: of the last one."""

    holder: Any
    ready: bool = False
    held: int = 0
    kind: tuple[bytes, str] | None = None
    done: int = 0


@dataclass
class Desk:
    """An actor without a CPU of its own; its methods run in one event loop."""

    step: str
    options: dict[str, Any]
    batch: int
    most: int
    _places: list[_Place] = field(default_factory=list)
    _waiting: deque[_Call] = field(default_factory=deque)
    _running: set[Any] = field(default_factory=set)
    _deaths: int = 0

    async def begin(self, least: int) -> None:
        """Start the first actors."""
        for _ in range(least):
            self._add()

    async def ready(self) -> None:
        """Comes back when there is an actor."""
        while not any(place.ready for place in self._places):
            await asyncio.sleep(0.05)

    async def ask(self, about: bytes, name: str, given: list[Any]) -> list[Any]:
        """The reference of an ``Answer``, in a list; ``given``: that of the arguments."""
        call = _Call(about, name, given[0], asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._deal()
        return [await call.answer]

    async def state(self) -> dict[str, Any]:
        """actors, calls answered, deaths, busy: share of the actors' time since their first call,
        each of them."""
        shares = []
        for place in self._places:
            if place.done:
                busy, whole = await place.holder.busy.remote()
                shares.append(busy / whole if whole else 0.0)
        done = sum(place.done for place in self._places)
        return {"actors": len(shares), "calls": done, "deaths": self._deaths, "busy": shares}

    def _add(self) -> None:
        self._places.append(_Place(self._hire()))
        self._start(self._greet(self._places[-1]))

    def _hire(self) -> Any:
        """A new actor, which may have to wait for its place."""
        import ray

        holder = ray.remote(Holder).options(**self.options, max_restarts=-1, max_task_retries=0)
        return holder.remote()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _greet(self, place: _Place) -> None:
        """Wait for an actor, which a node may have to come for."""
        import ray

        while not place.ready:
            try:
                await place.holder.ready.remote()
                place.ready = True
            except ray.exceptions.RayActorError:
                await asyncio.sleep(AGAIN)
        self._deal()

    def _deal(self) -> None:
        """Give calls to the actors that hold least; one more actor where that is not enough."""
        while self._waiting:
            alone = self._waiting[0].alone
            free = [p for p in self._places if p.ready and p.held < (1 if alone else AHEAD)]
            if not free:
                if all(place.ready for place in self._places) and len(self._places) < self.most:
                    self._add()
                return
            place = min(free, key=lambda p: p.held)
            calls = [self._waiting.popleft()] if alone else self._batch(place)
            place.held += AHEAD if alone else 1
            self._start(self._run(place, calls))

    def _batch(self, place: _Place) -> list[_Call]:
        """Calls of one kind, of that which the actor had last if any of it waits."""
        usual = [each for each in self._waiting if not each.alone]
        kind = place.kind if any(each.kind == place.kind for each in usual) else usual[0].kind
        calls = [each for each in usual if each.kind == kind][: self.batch]
        for each in calls:
            self._waiting.remove(each)
        place.kind = kind
        return calls

    async def _run(self, place: _Place, calls: list[_Call]) -> None:
        import ray

        held = AHEAD if calls[0].alone else 1
        method = place.holder.answer.options(num_returns=len(calls) + 1)
        *answers, done = method.remote(
            calls[0].about, calls[0].name, *(call.given for call in calls)
        )
        try:
            await done
        except Exception as error:
            died = isinstance(error, ray.exceptions.RayActorError)
            if died and place.ready:
                place.ready, self._deaths = False, self._deaths + 1
                self._start(self._greet(place))
            for call in reversed(calls):
                self._once_more(call, died, error)
        else:
            place.done += len(calls)
            for call, answer in zip(calls, answers, strict=True):
                if not call.answer.done():
                    call.answer.set_result(answer)
        place.held -= held
        self._deal()

    def _once_more(self, call: _Call, died: bool, error: Exception) -> None:
        """What was held when something went wrong is asked again by itself."""
        call.deaths += call.alone and died
        if call.alone and (not died or call.deaths >= DEATHS):
            said = f"the network of {self.step} died {DEATHS} times on this input"
            call.answer.set_exception(RuntimeError(said if died else str(error)))
            return
        call.alone = True
        self._waiting.appendleft(call)


def start_desk(name: str, step: Step, concurrency: tuple[int, int]) -> Any:
    """A desk on this node, whose actors are on their way."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # Workers, not actors, count the CPUs; one without a GPU computes on a CPU itself.
    options = {"num_gpus": step.gpus, "num_cpus": 0 if step.gpus else 1}
    desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=place, max_concurrency=10_000)
    started = desk.remote(name, options, step.batch, concurrency[1])
    ray.get(started.begin.remote(concurrency[0]))
    return started


class Desks:
    """The desks of a job's steps, in the driver; opened when units first need Ray."""

    def __init__(self, steps: Mapping[str, Step], quiet: bool) -> None:
        self._steps, self._quiet = steps, quiet
        self._open: dict[str, Any] | None = None

    def open(self) -> Mapping[str, Any]:
        """Step -> its desk, whose first actor is there. Ray runs already."""
        if not self._steps:
            return {}
        if self._open is None:
            import ray

            there = ray.cluster_resources().get("GPU", 0.0)
            steps = {
                name: step
                for name, step in self._steps.items()
                if there or not step.gpus or step.concurrency
            }
            whole = sum(step.gpus for step in steps.values())
            fit = max(1, int(there / whole + 1e-6)) if whole else 1
            self._open = {
                name: start_desk(name, step, step.concurrency or (1, fit))
                for name, step in steps.items()
            }
            self._wait(steps)
        return self._open

    def _wait(self, steps: Mapping[str, Step]) -> None:
        """Until every step has an actor: nodes with GPUs may have to come first."""
        import ray

        waited = time.monotonic()
        ready = {desk.ready.remote(): name for name, desk in (self._open or {}).items()}
        while ready:
            done, _ = ray.wait([*ready], timeout=WAITING)
            for each in done:
                ray.get(each)
                del ready[each]
            if ready and not done and not self._quiet:
                names, gpus = sorted(ready.values()), [steps[name].gpus for name in ready.values()]
                print(
                    f"waiting for a place for {', '.join(names)} ({max(gpus):g} GPU each), "
                    f"{(time.monotonic() - waited) / 60:.0f} min",
                    file=sys.stderr,
                    flush=True,
                )

    def close(self) -> None:
        """End all actors."""
        if self._open:
            import ray

            for desk in self._open.values():
                if ray.is_initialized():
                    ray.kill(desk)  # its holders go with it: nobody else has them
        self._open = None

    def states(self) -> dict[str, dict[str, Any]]:
        """Step -> what its desk says of itself, see ``Desk.state``; nothing if one is silent."""
        if not self._open:
            return {}
        import ray

        said = [desk.state.remote() for desk in self._open.values()]
        try:
            return dict(zip(self._open, ray.get(said, timeout=PATIENCE), strict=True))
        except (ray.exceptions.RayError, TimeoutError):
            return {}

    def line(self) -> str:
        """``; matte: 2 actors, 1,200 calls, 94 % busy`` for each step; empty without any."""
        return "".join(state_line(name, state) for name, state in self.states().items())


def state_line(name: str, state: Mapping[str, Any]) -> str:
    """What a line of progress says of a step; see ``Desk.state``."""
    shares = state["busy"]
    busy = f", {100 * sum(shares) / len(shares):.0f} % busy" if shares else ""
    died = f", died {state['deaths']} times" if state["deaths"] else ""
    return f"; {name}: {state['actors']} actors, {state['calls']:,} calls{busy}{died}"


NO_DESKS = Desks({}, quiet=True)
