"""Batches of records as they lie in a partition's log: one read by a Fetch of our own, and those
that a client hands out in part, falsely, silently or not at all, each with a way around it."""
