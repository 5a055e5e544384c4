"""The anomaly that KIP-890 is about: a late EndTxn ends the next transaction of the same epoch."""
