"""Consumer groups in another language: it knows the .proto files and nothing else of Quipu.

Usage: groups.py PROTO_DIR STUBS_DIR SERVER

Makes a group, reads as a member with credit, commits, hands a partition over to a second member,
asks how far the group is, moves it, and deletes it.
"""

import queue
import sys
import time
import zlib

import grpc

from client import generate, reason_of

TOPIC = "shared-from-python"
GROUP = "python"
PARTITIONS = 2
RECORDS = 100
CREDIT_BYTES = 64 * 1024
TIMEOUT_S = 20


class Services:
    def __init__(self, server):
        from quipu.v1 import group_pb2_grpc, log_pb2_grpc, topic_pb2_grpc

        channel = grpc.insecure_channel(server)
        self.log = log_pb2_grpc.LogServiceStub(channel)
        self.topics = topic_pb2_grpc.TopicServiceStub(channel)
        self.groups = group_pb2_grpc.GroupServiceStub(channel)

    def produce(self, partition, numbers):
        from quipu.v1 import log_pb2, record_pb2

        records = [record_pb2.Record(key=b"%d" % n, value=b"x" * 1000) for n in numbers]
        batch = record_pb2.RecordBatch(records=records)
        request = log_pb2.ProduceRequest(topic=TOPIC, partition=partition, batch=batch)
        return self.log.Produce(request, timeout=TIMEOUT_S)


class Member:
    """One stream. `pump` takes one message; what it has to say it says by itself."""

    def __init__(self, groups, member_id="", positions=()):
        from quipu.v1 import group_pb2

        self.said = queue.Queue(maxsize=64)
        join = group_pb2.ConsumeJoin(
            group=GROUP,
            member_id=member_id,
            client_id="groups.py",
            credit_bytes=CREDIT_BYTES,
            positions=positions,
        )
        self.say(join=join)
        self.call = groups.Consume(iter(self.said.get, None), timeout=6 * TIMEOUT_S)
        joined = next(self.call)
        assert joined.WhichOneof("message") == "joined", joined
        self.joined = joined.joined
        assert self.joined.heartbeat_interval_ms <= self.joined.session_timeout_ms / 2, joined
        self.assignments = {}
        self.positions = {}
        self.numbers = {}
        self.gaps = []
        self.released = []
        self.lost = []
        self.committed = {}

    def say(self, **message):
        from quipu.v1 import group_pb2

        self.said.put(group_pb2.ConsumeRequest(**message))

    def pump(self):
        from quipu.v1 import group_pb2

        message = next(self.call)
        kind = message.WhichOneof("message")
        if kind == "assigned":
            for assignment in message.assigned.assignments:
                self.assignments[assignment.assignment] = assignment
                self.positions[assignment.assignment] = assignment.next_offset
        elif kind == "data":
            self.take(message.data)
            self.say(credit=group_pb2.ConsumeCredit(bytes=message.data.cost_bytes))
        elif kind == "revoke":
            assert message.revoke.deadline_ms > 0, message
            for assignment in message.revoke.assignments:
                self.commit(assignment)
            self.say(released=group_pb2.ConsumeReleased(assignments=message.revoke.assignments))
            for assignment in message.revoke.assignments:
                self.released.append(self.assignments.pop(assignment))
        elif kind == "lost":
            self.lost += [(n, message.lost.reason) for n in message.lost.assignments]
            for assignment in message.lost.assignments:
                self.assignments.pop(assignment, None)
        elif kind == "committed":
            self.committed[message.committed.request_id] = list(message.committed.outcomes)
        elif kind == "gap":
            self.gaps.append(message.gap)
        else:
            assert kind == "positions", message
            self.say(heartbeat=group_pb2.ConsumeHeartbeat())
        return kind

    def take(self, data):
        position = self.positions[data.assignment]
        numbers = self.numbers.setdefault(self.assignments[data.assignment].partition, [])
        for stored in data.batches:
            assert zlib.crc32(stored.batch.SerializeToString()) == stored.crc, "a batch has changed"
            for offset, record in enumerate(stored.batch.records, stored.base_offset):
                if offset >= position:
                    numbers.append(int(record.key))
        self.positions[data.assignment] = data.next_offset

    def commit(self, assignment, next_offset=None, metadata="from python"):
        """Commits what was read, or an offset, and returns what became of it."""
        from quipu.v1 import group_pb2

        request_id = len(self.committed) + 1
        at = self.positions[assignment] if next_offset is None else next_offset
        offset = group_pb2.AssignmentCommit(
            assignment=assignment, next_offset=at, metadata=metadata
        )
        self.say(commit=group_pb2.ConsumeCommit(request_id=request_id, offsets=[offset]))
        self.pump_until(lambda: request_id in self.committed)
        return self.committed[request_id][0]

    def pump_until(self, is_done):
        deadline = time.monotonic() + TIMEOUT_S
        while not is_done():
            assert time.monotonic() < deadline, "it does not happen"
            self.pump()

    def leave(self):
        from quipu.v1 import group_pb2

        self.say(leave=group_pb2.ConsumeLeave())
        for message in self.call:
            assert message.WhichOneof("message") in ("data", "positions", "assigned"), message
        self.said.put(None)


def check_create(services):
    from quipu.v1 import group_pb2, topic_pb2

    topic = topic_pb2.CreateTopicRequest(name=TOPIC, partitions=PARTITIONS, replicas=1)
    services.topics.CreateTopic(topic, timeout=TIMEOUT_S)
    for partition in range(PARTITIONS):
        services.produce(partition, range(RECORDS))
    start = group_pb2.GroupPlace(earliest=True)
    request = group_pb2.CreateGroupRequest(name=GROUP, topics=[TOPIC], start=start)
    group = services.groups.CreateGroup(request, timeout=TIMEOUT_S).group
    assert group.name == GROUP and group.id, group
    assert group.session_timeout_ms == 30_000, group
    code, reason, metadata = reason_of(
        lambda: services.groups.CreateGroup(request, timeout=TIMEOUT_S)
    )
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "GROUP_EXISTS"), (code, reason)
    assert metadata["group"] == GROUP, metadata
    no_start = group_pb2.CreateGroupRequest(name="other", topics=[TOPIC])
    code, reason, _ = reason_of(lambda: services.groups.CreateGroup(no_start, timeout=TIMEOUT_S))
    assert code == grpc.StatusCode.INVALID_ARGUMENT, (code, reason)


def offsets_of(services):
    from quipu.v1 import group_pb2

    request = group_pb2.FetchOffsetsRequest(group=GROUP)
    offsets = services.groups.FetchOffsets(request, timeout=TIMEOUT_S).offsets
    assert [offset.partition for offset in offsets] == list(range(PARTITIONS)), offsets
    assert not any(offset.HasField("error") for offset in offsets), offsets
    return offsets


def check_lag_of_nothing(services):
    for offset in offsets_of(services):
        assert not offset.is_committed and offset.next_offset == 0, offset
        assert offset.lag == RECORDS and offset.high_watermark == RECORDS, offset
        assert offset.lag_ms < 60_000, offset


def check_consume(services):
    first = Member(services.groups)
    has_all = lambda: all(
        len(first.numbers.get(partition, [])) == RECORDS for partition in range(PARTITIONS)
    )
    first.pump_until(has_all)
    for partition in range(PARTITIONS):
        assert first.numbers[partition] == list(range(RECORDS)), first.numbers[partition]
    for assignment in list(first.assignments):
        outcome = first.commit(assignment)
        assert outcome.next_offset == RECORDS, outcome
    for offset in offsets_of(services):
        assert offset.is_committed and offset.next_offset == RECORDS, offset
        assert (offset.lag, offset.lag_ms) == (0, 0), offset
        assert offset.metadata == "from python", offset
        assert offset.member_id == first.joined.member_id, offset
    back = first.commit(next(iter(first.assignments)), next_offset=1)
    assert back.WhichOneof("outcome") == "error", back
    return first


def check_hand_over(services, first):
    """A second member gets one of two partitions, exactly where the first one let go of it."""
    from quipu.v1 import group_pb2

    second = Member(services.groups)
    first.pump_until(lambda: first.released)
    second.pump_until(lambda: second.assignments)
    (moved,) = second.assignments.values()
    assert moved.partition == first.released[0].partition, (moved, first.released)
    assert moved.next_offset == RECORDS and moved.metadata == "from python", moved
    services.produce(moved.partition, [RECORDS])
    second.pump_until(lambda: second.numbers)
    assert second.numbers == {moved.partition: [RECORDS]}, second.numbers
    assert second.commit(moved.assignment).next_offset == RECORDS + 1
    request = group_pb2.DescribeGroupRequest(group=GROUP)
    group = services.groups.DescribeGroup(request, timeout=TIMEOUT_S).group
    assert len(group.members) == 2 and {m.partitions for m in group.members} == {1}, group
    second.leave()
    first.pump_until(lambda: len(first.assignments) == PARTITIONS)


def check_reset(services, first):
    """Positions go back; the member that is active is told and goes on from there."""
    from quipu.v1 import group_pb2

    (place, partition) = (group_pb2.GroupPlace(offset=RECORDS - 10), 1)
    topics = [group_pb2.TopicPartitions(topic=TOPIC, partitions=[partition])]
    request = group_pb2.ResetOffsetsRequest(group=GROUP, topics=topics, to=place, dry_run=True)
    (reset,) = services.groups.ResetOffsets(request, timeout=TIMEOUT_S).resets
    assert reset.before >= RECORDS and reset.after == RECORDS - 10, reset
    assert offsets_of(services)[partition].next_offset == reset.before
    request.dry_run = False
    (reset,) = services.groups.ResetOffsets(request, timeout=TIMEOUT_S).resets
    assert reset.after == RECORDS - 10, reset
    first.numbers.clear()
    end = offsets_of(services)[partition].high_watermark
    again = lambda: len(first.numbers.get(partition, [])) == end - (RECORDS - 10)
    first.pump_until(again)
    assert first.numbers == {partition: list(range(RECORDS - 10, end))}, first.numbers
    assert [reason for _, reason in first.lost] == [group_pb2.LOST_REASON_RESET], first.lost


def check_delete(services, first):
    from quipu.v1 import group_pb2

    delete = group_pb2.DeleteGroupRequest(group=GROUP)
    code, reason, _ = reason_of(lambda: services.groups.DeleteGroup(delete, timeout=TIMEOUT_S))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GROUP_NOT_EMPTY"), reason
    first.leave()
    services.groups.DeleteGroup(delete, timeout=TIMEOUT_S)
    fetch = group_pb2.FetchOffsetsRequest(group=GROUP)
    code, reason, _ = reason_of(lambda: services.groups.FetchOffsets(fetch, timeout=TIMEOUT_S))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_GROUP"), (code, reason)


def main():
    proto_dir, stubs_dir, server = sys.argv[1:]
    generate(proto_dir, stubs_dir)
    services = Services(server)
    check_create(services)
    check_lag_of_nothing(services)
    first = check_consume(services)
    check_hand_over(services, first)
    check_reset(services, first)
    check_delete(services, first)
    print("all is well")


if __name__ == "__main__":
    main()
