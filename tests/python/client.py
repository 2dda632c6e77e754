"""A client in another language: it knows the .proto files and nothing else of Quipu.

Usage: client.py PROTO_DIR STUBS_DIR SERVER

Makes a topic on the server, produces, fetches, subscribes with credit, replays from an offset and
from a time, and reads the reasons of failed calls.
"""

import queue
import sys
import time
import zlib
from pathlib import Path

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

TOPIC = "from-python"
RECORDS = 200
VALUE_BYTES = 2000
CREDIT_BYTES = 64 * 1024
TIMEOUT_S = 20


def generate(proto_dir, stubs_dir):
    """Makes the stubs of the public services and puts them on the path."""
    files = [str(path) for path in sorted((Path(proto_dir) / "quipu" / "v1").glob("*.proto"))]
    told = ["protoc", f"-I{proto_dir}", f"--python_out={stubs_dir}", f"--grpc_python_out={stubs_dir}"]
    assert protoc.main(told + files) == 0, "the stubs cannot be made"
    sys.path.insert(0, stubs_dir)


class Client:
    def __init__(self, server):
        from quipu.v1 import log_pb2_grpc, topic_pb2_grpc

        channel = grpc.insecure_channel(server)
        self.log = log_pb2_grpc.LogServiceStub(channel)
        self.topics = topic_pb2_grpc.TopicServiceStub(channel)

    def create_topic(self):
        from quipu.v1 import topic_pb2

        request = topic_pb2.CreateTopicRequest(name=TOPIC, partitions=2, replicas=1)
        topic = self.topics.CreateTopic(request, timeout=TIMEOUT_S).topic
        assert len(topic.partitions) == 2, topic
        return topic

    def produce(self, topic_id, numbers, producer=None, partition=0):
        from quipu.v1 import log_pb2, record_pb2

        records = [
            record_pb2.Record(
                key=b"%d" % number,
                value=(b"%d " % number) * (VALUE_BYTES // 8),
                headers=[record_pb2.Header(name="number", value=b"%d" % number)],
                event_time_ms=number,
            )
            for number in numbers
        ]
        batch = record_pb2.RecordBatch(records=records)
        request = log_pb2.ProduceRequest(
            topic=TOPIC,
            topic_id=topic_id,
            partition=partition,
            batch=batch,
            crc=zlib.crc32(batch.SerializeToString()),
            acks=log_pb2.ACKS_QUORUM,
            producer=producer,
        )
        return self.log.Produce(request, timeout=TIMEOUT_S)

    def subscribe(self, start):
        return Subscription(self.log, start)


class Subscription:
    """Reads partition 0, and gives back the credit of a message once it is asked for more."""

    def __init__(self, log, start):
        from quipu.v1 import log_pb2

        self.told = queue.Queue(maxsize=16)
        begin = log_pb2.SubscribeStart(
            topic=TOPIC,
            partitions=[log_pb2.PartitionStart(partition=0, start=start)],
            credit_bytes=CREDIT_BYTES,
        )
        self.told.put(log_pb2.SubscribeRequest(start=begin))
        self.call = log.Subscribe(iter(self.told.get, None), timeout=TIMEOUT_S)
        first = next(self.call)
        assert first.WhichOneof("message") == "started", first
        self.position = first.started.positions[0].next_offset
        self.unpaid_bytes = 0
        self.messages = 0

    def read_until(self, end):
        """Returns the numbers of the records up to the offset `end`."""
        from quipu.v1 import log_pb2

        numbers = []
        while self.position < end:
            if self.unpaid_bytes:
                credit = log_pb2.SubscribeCredit(bytes=self.unpaid_bytes)
                self.told.put(log_pb2.SubscribeRequest(credit=credit))
            message = next(self.call)
            if message.WhichOneof("message") == "positions":
                continue
            assert message.WhichOneof("message") == "data", message
            numbers += numbers_of(message.data.batches, self.position)
            self.position = message.data.next_offset
            self.unpaid_bytes = message.data.cost_bytes
            self.messages += 1
        return numbers

    def close(self):
        self.told.put(None)
        self.call.cancel()


def numbers_of(batches, from_offset):
    """Checks batches, and returns the numbers of their records from an offset on."""
    numbers = []
    for stored in batches:
        assert zlib.crc32(stored.batch.SerializeToString()) == stored.crc, "a batch has changed"
        for offset, record in enumerate(stored.batch.records, stored.base_offset):
            number = int(record.key)
            assert record.headers[0].value == record.key and record.event_time_ms == number
            if offset >= from_offset:
                numbers.append(number)
    return numbers


def reason_of(call):
    """The reason and the metadata of a call that has to fail."""
    try:
        call()
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            assert isinstance(detail, any_pb2.Any)
            if detail.Unpack(info):
                assert info.domain == "quipu.v1", info
                return error.code(), info.reason, dict(info.metadata)
        raise AssertionError(f"no ErrorInfo in {status}") from error
    raise AssertionError("the call did not fail")


def check_produce(client, topic):
    from quipu.v1 import log_pb2

    init = log_pb2.InitProducerRequest(topic=TOPIC, topic_id=topic.id, partition=0)
    known = client.log.InitProducer(init, timeout=TIMEOUT_S)
    for first in range(0, RECORDS // 2, 10):
        stamp = log_pb2.ProducerStamp(
            producer_id=known.producer_id,
            producer_epoch=known.producer_epoch,
            base_sequence=known.next_sequence + first,
        )
        numbers = range(first, first + 10)
        stored = client.produce(topic.id, numbers, stamp)
        again = client.produce(topic.id, numbers, stamp)
        assert stored.base_offset == again.base_offset == first, (stored, again)
        assert stored.record_count == 10 and stored.durability == log_pb2.DURABILITY_FSYNC
    time.sleep(0.01)
    middle_ms = int(time.time() * 1000)
    time.sleep(0.01)
    for first in range(RECORDS // 2, RECORDS, 10):
        assert client.produce(topic.id, range(first, first + 10)).base_offset == first
    return middle_ms


def check_fetch(client):
    from quipu.v1 import log_pb2

    offset, numbers = 0, []
    while offset < RECORDS:
        request = log_pb2.FetchRequest(topic=TOPIC, offset=offset, max_bytes=50_000)
        fetched = client.log.Fetch(request, timeout=TIMEOUT_S)
        assert fetched.batches and fetched.high_watermark <= RECORDS, fetched
        numbers += numbers_of(fetched.batches, offset)
        offset = fetched.next_offset
    assert numbers == list(range(RECORDS)), numbers
    request = log_pb2.FetchRequest(topic=TOPIC, offset=RECORDS, max_wait_ms=50)
    assert not client.log.Fetch(request, timeout=TIMEOUT_S).batches


def check_subscribe(client, topic, middle_ms):
    from quipu.v1 import log_pb2

    live = client.subscribe(log_pb2.StartPosition(earliest=True))
    assert live.read_until(RECORDS) == list(range(RECORDS))
    assert live.messages > 2, "everything came at once, with credit for a part of it"
    client.produce(topic.id, [RECORDS])
    assert live.read_until(RECORDS + 1) == [RECORDS]
    live.close()
    for start, expected in [
        (log_pb2.StartPosition(offset=37), range(37, RECORDS + 1)),
        (log_pb2.StartPosition(time_ms=middle_ms), range(RECORDS // 2, RECORDS + 1)),
        (log_pb2.StartPosition(latest=True), []),
    ]:
        replay = client.subscribe(start)
        assert replay.read_until(RECORDS + 1) == list(expected), start
        replay.close()


def check_reasons(client):
    from quipu.v1 import log_pb2, topic_pb2

    code, reason, metadata = reason_of(
        lambda: client.log.Fetch(log_pb2.FetchRequest(topic="nowhere"), timeout=TIMEOUT_S)
    )
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TOPIC"), (code, reason)
    assert metadata["topic"] == "nowhere", metadata
    beyond = log_pb2.FetchRequest(topic=TOPIC, offset=10 * RECORDS)
    code, reason, metadata = reason_of(lambda: client.log.Fetch(beyond, timeout=TIMEOUT_S))
    assert (code, reason) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE"), (code, reason)
    assert metadata["requested"] == str(10 * RECORDS), metadata
    assert metadata["high_watermark"] == str(RECORDS + 1), metadata
    code, reason, _ = reason_of(client.create_topic)
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "TOPIC_EXISTS"), (code, reason)
    code, reason, _ = reason_of(lambda: client.produce("", [1], partition=7))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_PARTITION"), (code, reason)
    delete = topic_pb2.DeleteTopicRequest(name=TOPIC)
    client.topics.DeleteTopic(delete, timeout=TIMEOUT_S)


def main():
    proto_dir, stubs_dir, server = sys.argv[1:]
    generate(proto_dir, stubs_dir)
    client = Client(server)
    topic = client.create_topic()
    middle_ms = check_produce(client, topic)
    check_fetch(client)
    check_subscribe(client, topic, middle_ms)
    check_reasons(client)
    print("all is well")


if __name__ == "__main__":
    main()
