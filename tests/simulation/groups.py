"""Consumer groups of the simulated cluster: members, generations, and who owns what.

Two ways of sharing, as the workers use them: ``range``, where all members give everything back
before anything is shared anew, and ``cooperative-sticky``, where a partition is given back by one
member in a first round and comes to another in a second. Members are static: one that restarts
within its session takes over what it had, and fences who bore its name before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from tests.simulation.log import Cluster, Refused

SESSION_S = 10.0

TopicPartitionKey = tuple[str, int]


class GroupMetadata(Struct, frozen=True):
    """What a consumer knows of itself at one moment; vouches for the offsets of a transaction."""

    group: str
    member_id: str
    generation: int
    instance_id: str | None


class Member:
    """``consumer`` is the client behind it. ``joined``: has answered the sharing under way."""

    def __init__(self, consumer: Any, member_id: str, instance_id: str, topics: list[str]) -> None:
        self.consumer = consumer
        self.member_id = member_id
        self.instance_id = instance_id
        self.topics = topics
        self.joined = False
        self.owned: frozenset[TopicPartitionKey] = frozenset()
        # What the last sharing gave it, until the client has taken it.
        self.given: frozenset[TopicPartitionKey] | None = None
        self.generation = -1
        # Neither expelled nor replaced by one of its name.
        self.current = True


class Group:
    def __init__(self, cluster: Cluster, name: str, strategy: str) -> None:
        self._cluster = cluster
        self.name = name
        self.cooperative = strategy == "cooperative-sticky"
        self.members: dict[str, Member] = {}
        self.generation = 0
        self.sharing = False
        self._count = 0

    # The client's side --------------------------------------------------------------------------

    def join(self, consumer: Any, instance_id: str, topics: Sequence[str]) -> Member:
        """A client's first join. A static member's place is kept for its session."""
        self._count += 1
        member_id = f"{instance_id}#{self._count}"
        before = self.members.get(instance_id)
        member = Member(consumer, member_id, instance_id, list(topics))
        self.members[instance_id] = member
        if before is not None:
            before.current = False
        if before is not None and not self.sharing and before.given is None:
            # Its place was kept: the same partitions in the same generation.
            member.generation = self.generation
            member.given = before.owned
            member.owned = before.owned if not self.cooperative else frozenset()
            before.consumer.ring()
            consumer.ring()
            return member
        if before is not None:
            before.consumer.ring()
        member.joined = True
        self.share()
        return member

    def rejoin(self, member: Member) -> None:
        member.joined = True
        # What it has not taken yet is of a generation that is over.
        member.given = None
        self._complete_if_all_joined()

    def require_current(self, metadata: GroupMetadata) -> None:
        """What the group's coordinator checks of a transaction's offsets."""
        if metadata.instance_id is not None:
            holder = self.members.get(metadata.instance_id)
            if holder is None:
                raise Refused("UNKNOWN_MEMBER_ID")
            if holder.member_id != metadata.member_id:
                raise Refused("FENCED_INSTANCE_ID")
        elif metadata.generation < 0 and not metadata.member_id:
            return  # an older client, which nobody can check
        elif all(m.member_id != metadata.member_id for m in self.members.values()):
            raise Refused("UNKNOWN_MEMBER_ID")
        if metadata.generation != self.generation:
            raise Refused("ILLEGAL_GENERATION")

    # The coordinator's side ---------------------------------------------------------------------

    def missed(self, member: Member) -> None:
        """The process of a member is dead or frozen: when its session is over it is expelled."""

        def expel() -> None:
            process = member.consumer.process
            if member.current and (process.dead or process.paused):
                self._expel(member)

        self._cluster.world.after(SESSION_S, expel)

    def leave(self, member: Member) -> None:
        """A member whose client has closed is expelled after its session, unless it comes back."""

        def expel() -> None:
            if member.current:
                self._expel(member)

        self._cluster.world.after(SESSION_S, expel)

    def _expel(self, member: Member) -> None:
        member.current = False
        del self.members[member.instance_id]
        self.share()

    def share(self) -> None:
        """Begin to share anew: every member has to join again."""
        if not self.sharing:
            self.sharing = True
            for member in self.members.values():
                member.joined = member.generation < 0 and member.joined
        for member in self.members.values():
            if not member.joined:
                member.consumer.ring()
        self._complete_if_all_joined()

    def _complete_if_all_joined(self) -> None:
        if not self.sharing or not all(m.joined for m in self.members.values()):
            return
        self.sharing = False
        self.generation += 1
        if not self.members:
            return
        wanted = self._wanted()
        for member in self.members.values():
            member.generation = self.generation
            member.joined = False
            given = wanted[member.instance_id]
            if self.cooperative:
                held_by_others = {
                    tp for m in self.members.values() if m is not member for tp in m.owned
                }
                given = given - held_by_others
            else:
                member.owned = given
            member.given = given
            member.consumer.ring()

    def _wanted(self) -> dict[str, frozenset[TopicPartitionKey]]:
        """By ranges of partition numbers; sticky ones keep what they have as far as it is fair."""
        names = sorted(self.members)
        topics = sorted({topic for m in self.members.values() for topic in m.topics})
        count = len(self._cluster.topics[topics[0]])
        each, more = divmod(count, len(names))
        quota = {name: each + (index < more) for index, name in enumerate(names)}
        numbers: dict[str, list[int]] = {name: [] for name in names}
        free = list(range(count))
        if self.cooperative:
            for name in names:
                for _, number in sorted(self.members[name].owned):
                    if number in free and len(numbers[name]) < quota[name]:
                        numbers[name].append(number)
                        free.remove(number)
        for name in names:
            while len(numbers[name]) < quota[name]:
                numbers[name].append(free.pop(0))
        return {
            name: frozenset((topic, number) for topic in topics for number in numbers[name])
            for name in names
        }
