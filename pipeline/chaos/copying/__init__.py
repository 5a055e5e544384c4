"""Kafka's own test of transactions, with the engine's lane in place of the Java client."""
