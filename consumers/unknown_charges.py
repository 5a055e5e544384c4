"""Which payment may yet turn out to have made a charge whose row names nobody."""

from __future__ import annotations

from pipeline.domain.records import payment_from_record
from pipeline.errors import UserError
from pipeline.ledger.reconciliation.refunds import ChargeSeen, may_be
from pipeline.runtime.topic_reader import TopicReader
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue


def payment_that_may_have_made(
    charge: ChargeSeen, bootstrap_servers: str, catalogue: Catalogue, codec: Codec
) -> str:
    """The first of them as ``merchant:order``, "" where there is none. Reads the whole table, and
    remembers of it only what is uncertain. UserError where a payment cannot be read."""
    table = catalogue["payments"]
    decode = codec.decoder("payment")
    uncertain: dict[bytes, str] = {}
    for partition in range(table.partitions):
        for record in TopicReader(bootstrap_servers).onward(table.name, partition, 0):
            key = record.key or b""
            uncertain.pop(key, None)
            if record.value is None:
                continue
            try:
                payment = payment_from_record(decode(record.value))
            except DecodeError as error:
                raise UserError(
                    f"the payment at {table.name}[{partition}]@{record.offset} cannot be read "
                    f"({error}), so it may know the charge: see what `paystream verify` says of it "
                    "first."
                ) from error
            if may_be(charge, payment):
                uncertain[key] = f"{payment.merchant_id}:{payment.order_id}"
    return min(uncertain.values(), default="")
