"""Faults on purpose: a proxy that speaks enough of Kafka's protocol to injure chosen requests, and
the runs that show what comes of it."""
