"""The defences, as data: where each stands, the text without it, and what it guarantees.

``by``: seeds of the simulation (numbers) and tests (paths) that notice when it is gone; further
seeds are tried where the first ones do not.
"""

from __future__ import annotations

from dataclasses import dataclass

RUNTIME = "pipeline/runtime"
PROCESSORS = "pipeline/processors"


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    text: str
    instead: str
    by: tuple[int | str, ...] = ()


MUTATIONS: tuple[Mutation, ...] = (
    # 1: restoring the table -------------------------------------------------------------------
    Mutation(
        "the table is restored to the read_uncommitted end",
        f"{RUNTIME}/partition_offsets.py",
        "isolation_level=IsolationLevel.READ_UNCOMMITTED,",
        "isolation_level=IsolationLevel.READ_COMMITTED,",
        ("tests/unit/test_partition_offsets.py",),
    ),
    Mutation(
        "two clients say where the table ends",
        f"{RUNTIME}/restore.py",
        "for low, end in (said[partition], seen) if",
        "for low, end in (said[partition],) if",
        ("tests/unit/test_restore_ends.py",),
    ),
    Mutation(
        "an end before the checkpoint is asked for again",
        f"{RUNTIME}/restore.py",
        "if not short or self._outside",
        "if True or self._outside",
        ("tests/unit/test_restore_ends.py",),
    ),
    Mutation(
        "the last stable offset is not the end of the table",
        f"{RUNTIME}/restore.py",
        "            if offset >= self._waiting.get(partition, 0):\n",
        "            if True:\n",
        ("tests/unit/test_restore_open_end.py", 75),
    ),
    Mutation(
        "no input is read before the restoration is whole",
        f"{RUNTIME}/table_worker.py",
        "if not self._restoring or not self._restorer.step():",
        "if not self._restoring or (self._restorer.step() and False):",
    ),
    Mutation(
        "the table is restored from what is committed",
        f"{RUNTIME}/restore.py",
        '"isolation.level": "read_committed",',
        '"isolation.level": "read_uncommitted",',
    ),
    Mutation(
        "inputs are read committed, from offsets that are stable",
        f"{RUNTIME}/cluster.py",
        """"partition.assignment.strategy": "range",
        "isolation.level": "read_committed",""",
        """"partition.assignment.strategy": "range",
        "isolation.level": "read_uncommitted",""",
    ),
    Mutation(
        "a checkpoint of another cluster or topic is void",
        f"{RUNTIME}/restore.py",
        "if (checkpoint.cluster_id, checkpoint.topic_id) != (cluster_id, topic_id):",
        "if False:",
        ("tests/unit/test_engine_table.py",),
    ),
    Mutation(
        "a kept cache catches up before it is used",
        f"{RUNTIME}/restore.py",
        "if plan.start < plan.end:",
        "if plan.wipe and plan.start < plan.end:",
    ),
    Mutation(
        "the cache changes only by a commit that is known",
        f"{RUNTIME}/table_worker.py",
        """        if outcome is Outcome.ABORTED:
            self._rewind()
            return
        self._positions""",
        """        if outcome is Outcome.ABORTED:
            self._table.apply(
                {p: offset + 1 for p, offset in self._table_offsets.items()}, 0
            )
            self._rewind()
            return
        self._positions""",
    ),
    Mutation(
        "the committed offsets are taken before the table's end",
        f"{RUNTIME}/table_worker.py",
        "        self._restorer.begin(tp.partition for tp in partitions)\n"
        "        self._restoring = True\n",
        """        self._restorer.begin(tp.partition for tp in partitions)
        self._restoring = True
        self._positions = dict(
            positions_of_lanes(
                consumer, wanted, admin=self._admin, catalogue=self._catalogue,
                bootstrap_servers=self._spec.bootstrap_servers, stopped=self._stop.is_set,
            )
        )
        assigned = self._starts()
        consumer.assign(assigned)
        consumer.pause(assigned)
""",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "a checkpoint older than the delete retention is void",
        f"{RUNTIME}/restore.py",
        "if now_ms - checkpoint.saved_at_ms >= delete_retention_ms:",
        "if False:",
        ("tests/unit/test_engine_table.py",),
    ),
    # 2: fencing ---------------------------------------------------------------------------------
    Mutation(
        "a batch carries the group's metadata of its beginning",
        f"{RUNTIME}/table_worker.py",
        "        self._under_way = batch\n        self._table.seal()",
        "        self._under_way = batch\n"
        "        batch.group_metadata = self._consumer.consumer_group_metadata()\n"
        "        self._table.seal()",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "the offsets of the inputs are in the transaction",
        f"{RUNTIME}/lane.py",
        "            self._send_offsets(work)\n            failpoints.hit",
        "            failpoints.hit",
    ),
    Mutation(
        "partitions are given back after the open transaction has ended",
        f"{RUNTIME}/table_worker.py",
        "        self._take_outcome_before_leaving(apply=True)",
        "        self._under_way = None",
    ),
    Mutation(
        "what a rebalance brought back from before it is dropped",
        f"{RUNTIME}/table_worker.py",
        "        if self._epoch != epoch:\n",
        "        if False:\n",
    ),
    Mutation(
        "members are static, so that one who was expelled is fenced",
        f"{RUNTIME}/cluster.py",
        '        "group.instance.id": instance_id,\n',
        "",
        ("tests/unit/test_engine_workers.py",),
    ),
    # 3: one transaction at a time ---------------------------------------------------------------
    Mutation(
        "after an abort the inputs are read again",
        f"{RUNTIME}/table_worker.py",
        "            self._rewind()\n            return\n        self._positions",
        "            self._table.discard()\n            return\n        self._positions",
    ),
    Mutation(
        "what was prepared on a failed transaction is dropped with it",
        f"{RUNTIME}/table_worker.py",
        "        self._table.discard()\n        self._batch = None\n"
        "        self._let_go_of_held()\n",
        "        self._table.discard()\n        self._let_go_of_held()\n",
    ),
    Mutation(
        "the view of the table is dropped with a failed transaction",
        f"{RUNTIME}/table_worker.py",
        "        self._table.discard()\n        self._batch = None\n"
        "        self._let_go_of_held()\n",
        "        self._table._committing = None\n        self._batch = None\n"
        "        self._let_go_of_held()\n",
    ),
    Mutation(
        "what was buffered is dropped with a failed transaction",
        f"{RUNTIME}/table_worker.py",
        "has_ahead(_key(tp))])\n        self._admission.assign(self._positions)",
        "has_ahead(_key(tp))])",
    ),
    Mutation(
        "where nothing lies a position goes on, and never back",
        f"{RUNTIME}/table_worker.py",
        "            if self._positions[tp] < end:\n                batch.passes(tp, end)\n",
        "            batch.passes(tp, end)\n",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "after an abort the requests are read again",
        f"{RUNTIME}/gateway_worker.py",
        "            self._rewind()\n            return\n        for",
        "            return\n        for",
    ),
    Mutation(
        "one transaction at a time in a lane",
        f"{RUNTIME}/commit_thread.py",
        '        invariant(not self._busy, "one transaction at a time in a lane")\n',
        "",
        ("tests/unit/test_engine_workers.py",),
    ),
    # 4: ambiguous ends --------------------------------------------------------------------------
    Mutation(
        "an end that was not plain is noticed",
        f"{RUNTIME}/lane.py",
        "        if watch.ended_plainly:\n",
        "        if True:\n",
    ),
    Mutation(
        "an end that was not plain costs the producer",
        f"{RUNTIME}/lane.py",
        "        self._rebuild()\n        outcome = ",
        "        outcome = ",
    ),
    Mutation(
        "the committed offsets say how a transaction ended",
        f"{RUNTIME}/lane.py",
        "return Outcome.COMMITTED if all(reached) else Outcome.ABORTED",
        "return Outcome.COMMITTED if reached else Outcome.ABORTED",
    ),
    Mutation(
        "an abort may come after the commit",
        f"{RUNTIME}/lane.py",
        "        if end_asked:\n",
        "        if False:\n",
        ("tests/unit/test_engine_lane.py",),
    ),
    Mutation(
        "an abort that nobody asked to commit asks no offsets",
        f"{RUNTIME}/lane.py",
        "        if end_asked:\n",
        "        if True:\n",
        ("tests/unit/test_engine_lane.py",),
    ),
    Mutation(
        "offsets that a successor may have moved tell nothing",
        f"{RUNTIME}/lane.py",
        "if outcome is Outcome.COMMITTED and not self._vouched_for(work):",
        "if False:",
        ("tests/unit/test_engine_lane.py",),
    ),
    Mutation(
        "a lane that does not see how transactions end does not run on",
        f"{RUNTIME}/lane.py",
        "        if self._unseen_ends >= UNSEEN_ENDS_MAX:\n",
        "        if False:\n",
        ("tests/unit/test_engine_lane.py",),
    ),
    Mutation(
        "offsets that may have been sent twice cost the producer",
        f"{RUNTIME}/lane.py",
        "        if self._outside.monotonic_s() - begun_s > OFFSETS_PLAIN_S_MAX:\n",
        "        if False:\n",
        ("tests/unit/test_engine_lane.py",),
    ),
    # 5 and 8: lanes and bad input ---------------------------------------------------------------
    Mutation(
        "an order in another's lane is refused",
        f"{RUNTIME}/payments_stage.py",
        "if payment is None and partition_of(key, self._partitions) != record.partition:",
        "if False:",
    ),
    Mutation(
        "a key that is not the payload's is refused",
        f"{RUNTIME}/payments_stage.py",
        "if key != record_key(value.merchant_id, value.order_id):",
        "if False:",
    ),
    Mutation(
        "a refused input is buried in the transaction of its offset",
        f"{RUNTIME}/payments_stage.py",
        """        batch.outputs.extend(
            dead_letter(record, topic=self._dead_letters, stage=STAGE, cause=cause, detail=detail)
        )""",
        "        pass",
    ),
    Mutation(
        "the client puts a key where every Java client would",
        f"{RUNTIME}/lane.py",
        '        "partitioner": "murmur2_random",\n',
        "",
        ("tests/unit/test_engine_workers.py",),
    ),
    Mutation(
        "a key's lane is that of every Java client",
        "pipeline/domain/keys.py",
        "return (murmur2(key) & 0x7FFFFFFF) % partitions",
        "return abs(murmur2(key)) % partitions",
        ("tests/unit/test_domain_keys.py",),
    ),
    Mutation(
        "a worker that is given unequal partitions of its inputs reads nothing",
        f"{RUNTIME}/table_worker.py",
        "if by_topic.keys() != read or len({frozenset(each) for each in by_topic.values()}) > 1:",
        "if False:",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "topics of unequal partition counts are not consumed",
        f"{RUNTIME}/lane_counts.py",
        "    if found == {expected}:\n",
        "    if expected in found:\n",
        ("tests/unit/test_partition_counts.py",),
    ),
    Mutation(
        "a used flow that was given more partitions is not consumed",
        f"{RUNTIME}/lane_counts.py",
        "if lanes_read(_committed(stage, catalogue, counts, bootstrap_servers)) < expected:",
        "if False:",
        ("tests/unit/test_partition_counts.py",),
    ),
    Mutation(
        "a flow has grown where no group has an offset in its last partitions",
        "topics/growth.py",
        "    return Grown(before, wider) if before and wider and used() else None\n",
        "    return None\n",
        ("tests/unit/test_partition_counts.py",),
    ),
    Mutation(
        "provisioning gives no more partitions to topics that hold records",
        "topics/provisioning.py",
        "        elif used:\n",
        "        elif False:\n",
        ("tests/unit/test_partition_counts.py",),
    ),
    Mutation(
        "a large input is split into letters that fit their topic",
        f"{RUNTIME}/dead_letters.py",
        "count = max(1, -(-len(masked) // chunk_bytes))",
        "count = 1",
        ("tests/unit/test_dead_letters.py",),
    ),
    Mutation(
        "no more commands wait in a payment than fit its row",
        f"{PROCESSORS}/commands.py",
        "if len(payment.commands) >= (rules.WAITING_ALWAYS_MAX if always else rules.WAITING_MAX):",
        "if False:",
        ("tests/unit/test_record_sizes.py", "tests/unit/test_processors_commands.py"),
    ),
    Mutation(
        "no more commands are remembered in a payment than fit its row",
        "pipeline/domain/command_memory.py",
        "    if len(ids) >= COMMAND_IDS_MAX:\n",
        "    if False:\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "nothing is given back for which a payment has no room",
        "pipeline/domain/reversals.py",
        "    return len(payment.attempts) + may_come + kept < ATTEMPTS_MAX\n",
        "    return True\n",
        ("tests/unit/test_recorded_refunds.py",),
    ),
    Mutation(
        "no more operations begin in a payment than fit its row",
        "pipeline/domain/commands.py",
        "    return len(payment.attempts) < most\n",
        "    return True\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "no more letters are kept in a payment than fit its row",
        f"{PROCESSORS}/refused_evidence.py",
        "letters=(*payment.letters, _said(result) + cause)[-LETTERS_MAX:]",
        "letters=(*payment.letters, _said(result) + cause)",
        ("tests/unit/test_contradictions.py",),
    ),
    # 6 and 7: identities and offsets ------------------------------------------------------------
    Mutation(
        "a worker's transactional id is its own",
        f"{RUNTIME}/worker_spec.py",
        'return f"{APP}/{self.topics.prefix}/{self.node_id}/{self.stage}/{self.slot}"',
        'return f"{APP}/{self.topics.prefix}/{self.node_id}/{self.stage}"',
        ("tests/unit/test_engine_workers.py",),
    ),
    Mutation(
        "a cluster that other machines can reach wants a node id",
        "pipeline/commands/flow.py",
        'if hosts and hosts <= {"127.0.0.1", "localhost", "::1"}:',
        "if True:",
        ("tests/unit/test_broker_addresses.py",),
    ),
    Mutation(
        "provisioning gives each group its first offsets",
        "topics/provisioning.py",
        "    _commit_initial_offsets(admin, planned.offsets)\n",
        "",
        ("tests/unit/test_partition_counts.py",),
    ),
    Mutation(
        "a group begins with the first record that is kept",
        "topics/group_offsets.py",
        "TopicPartition(tp.topic, tp.partition, lows[tp.topic, tp.partition])",
        "TopicPartition(tp.topic, tp.partition, -1)",
        ("tests/unit/test_partition_counts.py",),
    ),
    Mutation(
        "an offset that a worker has committed meanwhile stays",
        "topics/group_offsets.py",
        "    missing = without_offset(admin, group, planned)\n",
        "    missing = planned\n",
        ("tests/unit/test_partition_counts.py",),
    ),
    Mutation(
        "a position that was deleted is named and not skipped",
        f"{RUNTIME}/cluster.py",
        '        "auto.offset.reset": "error",\n        # A dead',
        '        "auto.offset.reset": "latest",\n        # A dead',
        ("tests/unit/test_engine_workers.py",),
    ),
    Mutation(
        "a record is compared with the log where it is not the next",
        f"{RUNTIME}/table_worker.py",
        "                if expected != record.offset and not self._is_in_its_place(record):\n",
        "                if False:\n",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "what is the next is known by the heads of the batches",
        f"{RUNTIME}/false_offsets.py",
        "        return offset == max(following, batch.first_offset)\n",
        "        return True\n",
        ("tests/unit/test_false_offsets.py",),
    ),
    Mutation(
        "a batch whose records give false offsets is gone around",
        f"{RUNTIME}/heavy_batches.py",
        "        elif gives_false_offsets(batch):\n",
        "        elif False:\n",
        ("tests/unit/test_heavy_batches.py",),
    ),
    Mutation(
        "card numbers are masked in the dead letters",
        f"{RUNTIME}/dead_letters.py",
        "masked = None if value is None else mask_card_numbers(value)",
        "masked = value",
        ("tests/unit/test_dead_letters.py", "tests/unit/test_engine_stages.py"),
    ),
    Mutation(
        "orders wait while the gate is closed",
        f"{RUNTIME}/admission.py",
        "if buffer.lane.gated and not self._gate_open:",
        "if False:",
        ("tests/unit/test_engine_admission.py",),
    ),
    Mutation(
        "nothing goes from the dead letters straight to a gateway",
        f"{RUNTIME}/gateway_stage.py",
        "        if is_redriven(record):\n",
        "        if False:\n",
        ("tests/unit/test_dead_letters.py", "tests/unit/test_gateway_stage.py"),
    ),
    # 12: counts -----------------------------------------------------------------------------------
    Mutation(
        "what is counted has a lane of its own",
        f"{RUNTIME}/payments_stage.py",
        "                lane = partition_of(at, self._partitions)\n                raw_check",
        "                lane = partition\n                raw_check",
    ),
    Mutation(
        "an order is counted once",
        "pipeline/domain/risk_velocity.py",
        "    if mark in recent:\n",
        "    if False:\n",
        ("tests/unit/test_risk_velocity.py", "tests/unit/test_risk_stage.py"),
    ),
    Mutation(
        "attempts in flight count towards a card's cap",
        "pipeline/domain/card_attempts.py",
        "return self._declines(cap) + open_ >= cap.declines_max",
        "return self._declines(cap) >= cap.declines_max",
        ("tests/unit/test_card_attempts.py",),
    ),
    # 9: admission, and many calls in flight ------------------------------------------------------
    Mutation(
        "only the finished prefix of a partition is committed",
        f"{RUNTIME}/prefix.py",
        "        while limit > 0 and order and order[0] in self._finished:\n"
        "            offset = order.popleft()\n",
        "        while limit > 0 and any(o in self._finished for o in order):\n"
        "            offset = next(o for o in order if o in self._finished)\n"
        "            order.remove(offset)\n",
    ),
    Mutation(
        "results and what is due go before new orders",
        f"{RUNTIME}/payments_stage.py",
        "            for spec in catalogue.inputs(STAGE)\n        )\n",
        "            for spec in reversed(catalogue.inputs(STAGE))\n        )\n",
        ("tests/unit/test_engine_stages.py",),
    ),
    Mutation(
        "inputs are admitted in the order in which their stage names them",
        f"{RUNTIME}/admission.py",
        "        taken: list[InputRecord] = []\n        for buffer in self._buffers.values():\n",
        "        taken: list[InputRecord] = []\n"
        "        for buffer in reversed(self._buffers.values()):\n",
        ("tests/unit/test_engine_admission.py",),
    ),
    Mutation(
        "what is paused is fetched again once it is nearly empty, not sooner",
        f"{RUNTIME}/admission.py",
        "elif held <= share // 4 and light and not full:",
        "elif held < share and not heavy and not full:",
        ("tests/unit/test_engine_admission.py",),
    ),
    Mutation(
        "a tier's record waits until it is due",
        f"{RUNTIME}/admission.py",
        "and (delay_ms is None or queue[0].timestamp_ms + delay_ms <= now_ms)",
        "and True",
        ("tests/unit/test_engine_admission.py",),
    ),
    Mutation(
        "a record that is due sooner than the others of its tier is not held up by them",
        f"{RUNTIME}/admission.py",
        """        if not queue:
            buffer.none_due_before_ms = 0
""",
        "",
        ("tests/unit/test_engine_admission.py",),
    ),
    # The table and its processors ---------------------------------------------------------------
    Mutation(
        "the table is written in the transaction of what it led to",
        f"{RUNTIME}/payments_stage.py",
        """            batch.last_table_output[partition] = len(outputs)
            outputs.append((self.table_topic, partition, key, raw, None))
            table.prepare""",
        """            batch.last_table_output[partition] = len(outputs) - 1
            table.prepare""",
    ),
    Mutation(
        "the same order again is one payment",
        f"{PROCESSORS}/order.py",
        "if payment is not None and is_ordered(payment):",
        "if payment is not None and payment.status == 'never':",
    ),
    Mutation(
        "the same command again has no effect",
        f"{PROCESSORS}/commands.py",
        "if payment is not None and is_remembered(payment, command):",
        "if False:",
    ),
    Mutation(
        "a result counts only for the try that it answers",
        f"{PROCESSORS}/settlement.py",
        "    if result.try_number == attempt.tries:\n",
        "    if True:\n",
        ("tests/unit/test_processors_tries.py",),
    ),
    Mutation(
        "a wait counts only for the try that it followed",
        f"{PROCESSORS}/settlement.py",
        "if attempt is None or due.try_number != attempt.tries:",
        "if attempt is None:",
        ("tests/unit/test_processors_tries.py",),
    ),
    # Charged at most once -----------------------------------------------------------------------
    Mutation(
        "every try of an attempt carries the same idempotency key",
        "pipeline/domain/payment.py",
        "            payment.payment_id, attempt.operation_id, attempt.gateway, attempt.attempt\n",
        "            payment.payment_id, attempt.operation_id, attempt.gateway, attempt.tries\n",
    ),
    Mutation(
        "unknown is inquired about before it is sent again",
        f"{PROCESSORS}/settlement.py",
        "    if outcome == NOT_SENT:\n",
        '    if outcome in (NOT_SENT, "unknown"):\n',
    ),
    Mutation(
        "not found is proof only after the grace time of the last sending",
        f"{PROCESSORS}/settlement.py",
        "asked_at_ms >= attempt.sendable_until_ms + profile.grace_ms\n        and",
        "asked_at_ms >= 0\n        and",
        ("tests/unit/test_processors_stories.py",),
    ),
    Mutation(
        "what may be sent again has the same key and a gateway that knows keys",
        f"{PROCESSORS}/settlement.py",
        "        profile.idempotent\n        and is_uncertain(payment, attempt)\n",
        "        is_uncertain(payment, attempt)\n",
        ("tests/unit/test_processors_stories.py",),
    ),
    Mutation(
        "nothing is sent again once the gateway may have forgotten the key",
        f"{PROCESSORS}/settlement.py",
        "        and now_ms < attempt.started_at_ms + profile.key_retention_ms\n    )",
        "    )",
        ("tests/unit/test_processors_stories.py",),
    ),
    Mutation(
        "send_before is the request's own append time and its window",
        f"{PROCESSORS}/gateway.py",
        "deadline_ms = appended_at_ms + request.send_within_ms",
        "deadline_ms = appended_at_ms + request.send_within_ms * 1_000",
        ("tests/unit/test_processors_gateway.py",),
    ),
    Mutation(
        "a request that is too old is not sent",
        f"{PROCESSORS}/gateway.py",
        "    if now_ms >= deadline_ms:\n",
        "    if False:\n",
        ("tests/unit/test_processors_gateway.py",),
    ),
    Mutation(
        "an input whose effect its broker refuses is known",
        f"{RUNTIME}/lane.py",
        "                    self.too_large = index\n                else:",
        "                    pass\n                else:",
        ("tests/unit/test_engine_too_large.py",),
    ),
    Mutation(
        "an input whose effect no topic takes is a letter",
        f"{RUNTIME}/too_large.py",
        "            self._refused(*batch.input_of(output))\n",
        "            return\n",
        ("tests/unit/test_engine_too_large.py",),
    ),
    Mutation(
        "no text of an order is kept however long it is",
        "pipeline/domain/validation.py",
        "        or len(order.capture_method) > TEXT_LENGTH_MAX\n",
        "",
        ("tests/unit/test_record_sizes.py",),
    ),
    Mutation(
        "the texts of a command are bounded together",
        "pipeline/domain/commands.py",
        "    if size > TEXTS_BYTES_MAX:\n",
        "    if False:\n",
        ("tests/unit/test_record_sizes.py",),
    ),
    Mutation(
        "what may have been sent to a gateway without keys is not sent again",
        f"{RUNTIME}/gateway_stage.py",
        "            and record.offset < self._sent_below.get(record.partition, 0),\n",
        "            and False,\n",
    ),
    Mutation(
        "a worker that stood still sends nothing to a gateway without keys",
        f"{RUNTIME}/gateway_worker.py",
        "if self._stage.unrepeatable and stood_s >= STOOD_STILL_S_MAX:",
        "if False:",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "an inquiry does not make forgotten what others have sent",
        f"{RUNTIME}/gateway_stage.py",
        "            self.assigned(record.partition, record.offset + 1)\n",
        "            self._sent_below[record.partition] = record.offset + 1\n",
        ("tests/unit/test_gateway_stage.py",),
    ),
    # What is heard too late ---------------------------------------------------------------------
    Mutation(
        "what is heard too late and makes another end is told by itself",
        f"{RUNTIME}/calls.py",
        "        if tells_success(answer) or has_it or (counts and is_told(kind, answer)):\n",
        "        if False:\n",
        ("tests/unit/test_late_words.py",),
    ),
    Mutation(
        "a success is told though its request is read again",
        f"{RUNTIME}/gateway_worker.py",
        "                if not tells_success(answer):\n",
        "                if True:\n",
        ("tests/unit/test_late_words.py",),
    ),
    Mutation(
        "what does not stay true is forgotten when its operation is sent again",
        f"{RUNTIME}/heard.py",
        "        if word is not None and not stays_true(request.kind, word.answer):\n",
        "        if False:\n",
        ("tests/unit/test_heard.py",),
    ),
    Mutation(
        "what its gateway was heard to have is known on, also after an abort",
        f"{RUNTIME}/heard.py",
        "            self._words[_asked(request)] = word\n            if answer.code",
        "            if answer.code",
        ("tests/unit/test_heard.py",),
    ),
    Mutation(
        "what contradicts an answer is told behind it",
        f"{RUNTIME}/calls.py",
        "        if other is not None and contradicts(request.operation_kind, said, other):\n",
        "        if False:\n",
        ("tests/unit/test_late_words.py",),
    ),
    Mutation(
        "what is heard too late is told though no request comes",
        f"{RUNTIME}/gateway_worker.py",
        "            if self._words.are_due or not (fetch or self._tracked):\n",
        "            if False:\n",
        ("tests/unit/test_late_words.py",),
    ),
    Mutation(
        "what is told by itself carries an offset, so that it fences",
        f"{RUNTIME}/gateway_worker.py",
        "        batch.offsets[self._stage.topic, partition] = self._positions[partition]\n",
        "",
        ("tests/unit/test_late_words.py",),
    ),
    Mutation(
        "an answer for which there is no room is asked about again",
        f"{PROCESSORS}/settlement.py",
        "    then = _not_taken(known, left, result, now_ms, policy)\n"
        "    return then if made.payment is None else followed(made, then)\n",
        "    return made\n",
        ("tests/unit/test_refund_without_room.py",),
    ),
    Mutation(
        "a contradiction leaves a letter",
        f"{PROCESSORS}/settlement.py",
        "        return contradictory(payment, result, now_ms)\n    if (\n",
        "        return _STALE_RESULT\n    if (\n",
        ("tests/unit/test_late_words.py",),
    ),
    Mutation(
        "one movement of a gateway is booked once in a payment",
        f"{PROCESSORS}/successes.py",
        "    if evidence and is_anothers(payment, attempt, reference):\n",
        "    if False:\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "no operation is resolved by what another one is booked as",
        "pipeline/domain/commands.py",
        "            if is_of_another(payment, attempt, reference_of(command)):\n",
        "            if False:\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "no operation is resolved by another id than its gateway told",
        "pipeline/domain/commands.py",
        "            if is_known_otherwise(attempt, reference_of(command)):\n",
        "            if False:\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "an id is taken in spite of that from a person who insists, and from no other",
        "pipeline/domain/commands.py",
        "        if command.override != OVERRIDE_REFERENCE:\n",
        "        if command.override is None:\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "a permit that comes after pay_before begins nothing",
        f"{PROCESSORS}/permit_answers.py",
        "    if _is_too_late(payment, now_ms):\n"
        "        return _expired(payment, attempt, now_ms)\n    before",
        "    before",
        ("tests/unit/test_permits.py",),
    ),
    Mutation(
        "a success that came too late is given back",
        f"{PROCESSORS}/successes.py",
        """            or payment.status not in UNDECIDED
            or payment.cancel_requested_by is not None
""",
        "            or payment.status not in UNDECIDED\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "a success that shows after pay_before is given back",
        f"{PROCESSORS}/successes.py",
        "            or (payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms)\n",
        "",
        ("tests/unit/test_pay_before.py",),
    ),
    Mutation(
        "what is owed back is not given up",
        f"{PROCESSORS}/settlement.py",
        "            and not is_reversal(attempt)\n",
        "",
        ("tests/unit/test_reversals.py",),
    ),
    Mutation(
        "what came too late waits for the end of its dispute",
        "pipeline/domain/reversals.py",
        "return reversal.kind == REFUND and bars_refunds(payment, parent_of(payment, reversal))",
        "return False",
        ("tests/unit/test_reversals_in_dispute.py",),
    ),
    Mutation(
        "a give-back keeps its force",
        f"{PROCESSORS}/reversals.py",
        "reason=ended.code, override=ended.override,\n",
        "reason=ended.code,\n",
        ("tests/unit/test_reversals_in_dispute.py",),
    ),
    Mutation(
        "what is owed back is sent once to a gateway without keys",
        f"{PROCESSORS}/settlement.py",
        "        return without_successor(made, attempt, now_ms, policy)\n",
        "        return with_successor(made, attempt, now_ms, policy)\n",
        ("tests/unit/test_reversals.py",),
    ),
    Mutation(
        "a refund that came back stays so",
        f"{PROCESSORS}/settlement.py",
        "    if tells_return(attempt, result):\n",
        "    if False:\n",
        ("tests/unit/test_processors_notices.py",),
    ),
    Mutation(
        "no operation is repeated with a key that its gateway may have forgotten",
        f"{PROCESSORS}/gateway.py",
        "        if now_ms >= forgotten_ms:",
        "        if now_ms >= forgotten_ms and request.operation_id == request.order_id:",
        ("tests/unit/test_processors_gateway.py",),
    ),
    Mutation(
        "a repetition is not sent once its operation's time is over",
        f"{PROCESSORS}/gateway.py",
        "    if request.not_after_ms:\n",
        "    if False:\n",
        ("tests/unit/test_key_retention.py",),
    ),
    Mutation(
        "a dispute of what took nothing books nothing",
        "pipeline/domain/charges.py",
        "        and (attempt.state, attempt.code) != (ATTEMPT_FAILED, NOT_FOUND)\n",
        "",
        ("tests/unit/test_processors_disputes.py",),
    ),
    Mutation(
        "the newest event of a dispute holds",
        "pipeline/domain/disputes.py",
        "    if place > held:\n",
        "    if True:\n",
        ("tests/unit/test_processors_disputes.py",),
    ),
    Mutation(
        "what a newer word takes back is owed again",
        f"{PROCESSORS}/reversals.py",
        "    for each in () if made.payment is None else outstanding(made.payment):\n"
        "        payment = made.payment\n        # The one before",
        "    for each in ():\n        payment = made.payment\n        # The one before",
        ("tests/unit/test_reversals_in_dispute.py",),
    ),
    Mutation(
        "what waits for nothing keeps nothing from another charge",
        "pipeline/domain/reversals.py",
        "        + _kept_for_nothing_minor(payment, parent)\n",
        "",
        ("tests/unit/test_reversals_in_dispute.py",),
    ),
    Mutation(
        "what a refund left that was not made is owed of another charge",
        f"{PROCESSORS}/failures.py",
        "    return with_owed_again(payment, made, now_ms, policy, by=attempt)\n",
        "    return made\n",
        ("tests/unit/test_reversals_in_dispute.py",),
    ),
    Mutation(
        "a dispute that was told too early is booked once",
        f"{PROCESSORS}/disputes.py",
        "        payment = _without(payment, unfounded)\n        after",
        "        after",
        ("tests/unit/test_reversals_in_dispute.py",),
    ),
    Mutation(
        "two operations have no id together where notices carry it alone",
        "pipeline/domain/references.py",
        "        gateway_profile(policy, attempt.gateway).notices_by_own_id\n        and reference",
        "        False\n        and reference",
        ("tests/unit/test_notices_of_shared_ids.py",),
    ),
    Mutation(
        "a cancel bars a retry that waits",
        f"{PROCESSORS}/commands.py",
        "    barred = [each for each in payment.commands if each.type == rules.RETRY]\n",
        "    barred: list[PaymentCommand] = []\n",
        ("tests/unit/test_processors_commands.py",),
    ),
    Mutation(
        "a refund does not run during a dispute unasked",
        "pipeline/domain/commands.py",
        "    if bars_refunds(payment, charge) and command.override != OVERRIDE_DISPUTE:\n",
        "    if False:\n",
        ("tests/unit/test_processors_disputes.py", "tests/unit/test_processors_commands.py"),
    ),
    Mutation(
        "what a person decides is in the audit",
        f"{PROCESSORS}/decided.py",
        "    return replace(made, sends=(entry, *made.sends))\n\n\ndef with",
        "    return made\n\n\ndef with",
    ),
    Mutation(
        "no more is refunded than was captured",
        "pipeline/domain/commands.py",
        "if room_minor <= 0 or (command.amount_minor or 0) > room_minor:",
        "if False:",
        ("tests/unit/test_processors_commands.py",),
    ),
    # The books ----------------------------------------------------------------------------------
    Mutation(
        "entries and offsets are booked together",
        "pipeline/ledger/journal.py",
        "                self._move_offsets(connection, progress, items)\n",
        "                pass\n",
        ("tests/component/test_ledger_sqlite.py",),
    ),
    Mutation(
        "the stored offset is compared and set",
        "pipeline/ledger/journal.py",
        'consumer_offsets.c.next_offset == bindparam("expected"),',
        'bindparam("expected") >= 0,',
        ("tests/component/test_ledger_sqlite.py",),
    ),
    Mutation(
        "what waited over a rebalance is read again from the stored offset",
        "consumers/ledger_sink.py",
        "                if partition not in self._stored or self._terms[partition] != term:\n",
        "                if partition not in self._stored:\n",
        ("tests/unit/test_ledger_sink_terms.py",),
    ),
    Mutation(
        "what is booked already is not booked again",
        "pipeline/ledger/journal.py",
        "known = self._writer.known(connection, list(by_id))",
        "known: set[str] = set()",
        ("tests/component/test_ledger_sqlite.py",),
    ),
    Mutation(
        "the key of an entry is unique",
        "pipeline/ledger/tables.py",
        'Column("entry_id", Text, nullable=False, unique=True),',
        'Column("entry_id", Text, nullable=False),',
        ("tests/unit/test_ledger_keys.py",),
    ),
    # 10: where booking starts -------------------------------------------------------------------
    Mutation(
        "booking starts where the database says, not where the group does",
        "consumers/ledger_sink.py",
        "            starts.append(TopicPartition(tp.topic, tp.partition, start))\n",
        "            starts.append(tp)\n",
        ("tests/unit/test_ledger_sink_terms.py",),
    ),
    Mutation(
        "offsets of another cluster start nothing",
        "pipeline/ledger/journal.py",
        '            ("cluster", row.cluster_id, here.cluster_id),\n',
        "",
        ("tests/component/test_ledger_sqlite.py",),
    ),
    Mutation(
        "offsets of a topic that was made anew start nothing",
        "pipeline/ledger/journal.py",
        '            ("topic id", row.topic_id, here.topic_id),\n',
        "",
        ("tests/component/test_ledger_sqlite.py",),
    ),
    # 11: redriving ------------------------------------------------------------------------------
    Mutation(
        "a letter's marker is in the transaction of what goes back",
        f"{RUNTIME}/redrive/redriver.py",
        "            for marker in markers:\n                self._produce(",
        "            for marker in ():\n                self._produce(",
        ("tests/unit/test_redriver.py",),
    ),
    Mutation(
        "a marker has its letter's place for its key",
        f"{RUNTIME}/redrive/redriver.py",
        "place_text((marker.letter_partition, marker.letter_offset)).encode(),",
        "place_text((marker.source_partition, marker.source_offset)).encode(),",
        ("tests/unit/test_redriver.py",),
    ),
    Mutation(
        "a marker counts for its letter, not for its input",
        f"{RUNTIME}/redrive/plan.py",
        "        place = marker.letter_partition, marker.letter_offset\n",
        "        place = marker.source_partition, marker.source_offset\n",
        ("tests/unit/test_redriver.py",),
    ),
    Mutation(
        "the markers are read once nobody else can commit",
        f"{RUNTIME}/redrive/redriver.py",
        "        self._log.refresh(self._markers)\n",
        "",
        ("tests/unit/test_redriver.py",),
    ),
    Mutation(
        "a letter that has a marker does not go back again",
        f"{RUNTIME}/redrive/redriver.py",
        "fresh = [whole for whole in batch if self._markers.of(whole.letter) is None]",
        "fresh = list(batch)",
        ("tests/unit/test_redriver.py",),
    ),
    Mutation(
        "a redrive whose end was not plain is what its markers say",
        f"{RUNTIME}/redrive/redriver.py",
        '        return None if all(closed) else "again"\n',
        "        return None\n",
        ("tests/unit/test_redriver.py",),
    ),
    Mutation(
        "a redrive whose end was not plain is noticed",
        f"{RUNTIME}/redrive/redriver.py",
        "        if watch.ended_plainly:\n",
        "        if True:\n",
        ("tests/unit/test_redriver.py",),
    ),
    # Payouts and seals --------------------------------------------------------------------------
    Mutation(
        "a payout is approved by a second person",
        "pipeline/domain/payouts.py",
        "    if act == APPROVE and same_person(actor, payout.created_by):\n",
        "    if False:\n",
        (1, 25),
    ),
    Mutation(
        "a payout that is decided and not booked has taken its funds",
        "pipeline/ledger/payout_positions.py",
        "    for event in unpublished(connection):\n",
        "    for event in ():\n",
        ("tests/component/test_payouts_sqlite.py",),
    ),
    Mutation(
        "a decision that is in the topic is not published again",
        "producers/ledger_events.py",
        "new = [event for event in events if event.event_id not in places]",
        "new = list(events)",
        (97, 121, 1, 25),
    ),
    Mutation(
        "a decision about a payout is published with what it made of it",
        "producers/ledger_events.py",
        "            for role, key, noun in companions:\n",
        "            for role, key, noun in ():\n",
        (1, 25),
    ),
    Mutation(
        "what came back from where it had been paid to is taken from the bank",
        "pipeline/domain/payouts.py",
        "debit, credit = (bank if payout.state == PAID else in_transit), available",
        "debit, credit = in_transit, available",
        (1, 25, 49, 73),
    ),
    Mutation(
        "seals go on where the last one stands",
        "pipeline/ledger/seals.py",
        "after=(head.source_offset, head.source_part), end=end, limit=limit,",
        "after=(-1, 0), end=end, limit=limit,",
        (1,),
    ),
    # What is done about an error ----------------------------------------------------------------
    Mutation(
        "a producer that is done for leaves",
        f"{RUNTIME}/kafka_errors.py",
        "    if error.fatal():\n        return Course.LEAVE\n    if error.txn",
        "    if error.txn",
        ("tests/unit/test_engine_errors.py",),
    ),
    Mutation(
        "what has to be aborted is not tried again",
        f"{RUNTIME}/kafka_errors.py",
        "    if error.txn_requires_abort():\n        return Course.ABORT\n"
        "    if error.retriable():\n        return Course.RETRY\n",
        "    if error.retriable():\n        return Course.RETRY\n"
        "    if error.txn_requires_abort():\n        return Course.ABORT\n",
        ("tests/unit/test_engine_errors.py",),
    ),
    Mutation(
        "an error without a mark ends the worker",
        f"{RUNTIME}/kafka_errors.py",
        "        return Course.RETRY\n    return Course.LEAVE",
        "        return Course.RETRY\n    return Course.ABORT",
        ("tests/unit/test_engine_errors.py",),
    ),
    # 13: what kills the process, and what is away ------------------------------------------------
    Mutation(
        "the third death at an offset quarantines its record",
        f"{RUNTIME}/crash_guard.py",
        "if suspect is not None and suspect.deaths >= DEATHS_MAX:",
        "if False:",
        ("tests/unit/test_engine_crash_guard.py",),
    ),
    Mutation(
        "the same of a worker with a table",
        f"{RUNTIME}/suspects.py",
        "suspect.at == record.offset and suspect.deaths >= DEATHS_MAX",
        "False",
        ("tests/unit/test_engine_suspects.py",),
    ),
    Mutation(
        "suspects have half of the time",
        f"{RUNTIME}/suspect_turns.py",
        "self._owed_s > 0 if alone else self._owed_s >= 0",
        "not alone",
        ("tests/unit/test_suspect_turns.py", "tests/unit/test_engine_suspects.py"),
    ),
    Mutation(
        "more suspects than are held are read on",
        f"{RUNTIME}/table_worker.py",
        "self._resume(tp for tp in self._held.roomy() if self._takes(tp))",
        "pass",
        ("tests/unit/test_engine_suspects.py",),
    ),
    Mutation(
        "what moved away was not under way at a later death",
        f"{RUNTIME}/suspects.py",
        "        if self._assigned:\n            # The next death is another one.\n",
        "        if False:\n            # The next death is another one.\n",
        ("tests/unit/test_engine_suspects.py",),
    ),
    Mutation(
        "a request that is too old uses up no token",
        f"{RUNTIME}/calls.py",
        "return left_ms <= min(SEND_MARGIN_MS, waited_ms)",
        "return False",
        ("tests/unit/test_gateway_protection.py",),
    ),
    Mutation(
        "a settlement waits for its database",
        "consumers/ledger_sink.py",
        """                retry_s = self._wait_for("the ledger's database", error, retry_s)
""",
        """                batch.refused += [
                    _Refused(batch.messages[i.partition, i.offset], "database", str(error))
                    for i in batch.items
                ]
                batch.items = []
""",
        ("tests/unit/test_ledger_sink_away.py",),
    ),
    Mutation(
        "a settlement waits for the registry",
        "consumers/ledger_sink.py",
        """                retry_s = self._wait_for("the schema registry", error, retry_s)
""",
        """                return NotBookable("registry", str(error))
""",
        ("tests/unit/test_ledger_sink_away.py",),
    ),
    Mutation(
        "an input of payments waits for the registry",
        f"{RUNTIME}/table_worker.py",
        "            self._wait_for_registry(error)\n            return\n",
        "            pass\n",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "a request waits for the registry",
        f"{RUNTIME}/gateway_worker.py",
        "                disturbed.add(record.partition)\n                self._stop.wait(REGISTRY",
        "                self._stop.wait(REGISTRY",
        ("tests/unit/test_engine_turns.py",),
    ),
    Mutation(
        "a registry that does not answer is away",
        "schemas/registry.py",
        '            raise RegistryUnavailable(f"the schema registry did not answer: {error}")',
        "            raise UnknownSchemaId(schema_id)",
        ("tests/component/test_schemas_registry_client.py",),
    ),
    Mutation(
        "a registry that answers something else is away",
        "schemas/registry.py",
        "            if error.error_code == _SCHEMA_NOT_FOUND:\n",
        "            if True:\n",
        ("tests/component/test_schemas_registry_client.py",),
    ),
)
