"""What can be wrong with a flow, by the literature's names, and which finding tells of which. Pure.

The names are those of Adya's histories (G1a), of Jepsen's reports and of accounting. A finding of
the audit is evidence of one of them; each finding there is has its place here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

ANOMALIES: Final[Mapping[str, str]] = {
    "lost": "What was acknowledged, or caused by a committed record, is not there.",
    "duplicated": "An effect is there twice.",
    "aborted visible (G1a)": "A reader of committed records sees one of an aborted transaction.",
    "torn transaction": "A transaction is committed in part.",
    "inconsistent offsets": "A group's offsets are not those of what its transactions wrote.",
    "non-monotonic": "The events of an order are not in their order, or one is missing.",
    "LSO stuck": "An end that readers of committed records cannot pass stands for over a minute.",
    "charged more than once": "A payment has more than one charge that stands.",
    "money created or destroyed": "Amounts do not add up.",
    "terminal outcomes not 1": "An order has no outcome at rest, or two.",
    "dead letter without lineage": "A dead letter does not say what it was, or should not be one.",
    "ledger, topic, gateway differ": "The three accounts of what was moved are not the same.",
    "crashed": "A worker ended by a broken invariant, an exception, or gave up.",
}

# Findings of the audit, by what they are evidence of.
_OF: Final[Mapping[str, str]] = {
    "lost": "order_lost request_without_result settlement_missing success_without_settlement "
    "redriven_input_missing payment_erased settlement_without_order request_without_order "
    "result_without_request payment_without_order history_deleted history_deleted_meanwhile "
    "bad_order_not_dead_lettered bad_command_not_dead_lettered notice_not_dead_lettered "
    "unreadable_batch",
    "duplicated": "request_duplicated result_duplicated settlement_duplicated "
    "reference_settled_twice "
    "journal_entry_duplicated dead_letter_duplicated dead_letter_repeated command_answered_twice "
    "input_redriven_twice dead_letter_closed_twice",
    "torn transaction": "snapshot_differs_from_events undecodable_record headers_unreadable",
    "inconsistent offsets": "consumer_offset_beyond_end journal_entry_beyond_offset "
    "partitions_unequal misplaced_key key_differs_from_payload derived_id_wrong",
    "non-monotonic": "event_sequence_gap event_sequence_not_monotonic payment_regressed",
    "LSO stuck": "open_transaction",
    "charged more than once": "charged_twice two_keys_charged more_than_one_request_in_flight "
    "late_success_not_reversed void_and_capture movement_of_another_charge "
    "operation_without_request charge_without_payment "
    "charge_of_two_payments idempotency_key_wrong",
    "money created or destroyed": "money_not_conserved journal_unbalanced amounts_out_of_order "
    "balance_differs_from_postings charge_amount_wrong request_amount_wrong "
    "settlement_amount_wrong journal_entry_amount_wrong journal_entry_fees_wrong "
    "payment_differs_from_order request_instrument_wrong tier_correction_wrong "
    "payout_decision_wrong clearing_wrong",
    "terminal outcomes not 1": "two_outcomes order_without_outcome unknown_left_behind "
    "processing_left_behind operation_left_behind waits_for_a_person waits_for_the_customer "
    "commands_wait_for_their_order command_without_outcome notice_outstanding conflict_not_named",
    "dead letter without lineage": "dead_letter_without_lineage dead_letter_unjustified "
    "notice_of_another_payment",
    "ledger, topic, gateway differ": "charged_but_not_captured captured_without_charge "
    "refund_without_settlement settlement_without_refund settlement_without_dispute "
    "settlement_without_captured_payment settlement_without_evidence settlement_date_wrong "
    "settlement_without_journal_entry journal_entry_without_settlement "
    "journal_entry_accounts_wrong journal_entry_day_wrong journal_entry_without_decision "
    "journal_entry_source_wrong decision_not_booked",
}  # fmt: skip

ANOMALY_OF: Final[Mapping[str, str]] = {
    finding: anomaly for anomaly, findings in _OF.items() for finding in findings.split()
}


@dataclass
class Found:
    """How often an anomaly was found, and the first examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class Anomalies:
    """Every anomaly there is, most of them found nowhere. ``looked_at``: how much was there to be
    found wrong, since nothing is wrong with nothing."""

    EXAMPLES_MAX = 5

    def __init__(self) -> None:
        self.found = {name: Found() for name in ANOMALIES}
        self.looked_at: dict[str, int] = {}

    def add(self, name: str, example: str, count: int = 1) -> None:
        found = self.found[name]
        found.count += count
        if len(found.examples) < self.EXAMPLES_MAX:
            found.examples.append(example)

    def add_all(self, name: str, examples: Iterable[str]) -> None:
        for example in examples:
            self.add(name, example)

    @property
    def whole(self) -> bool:
        return not any(found.count for found in self.found.values())
