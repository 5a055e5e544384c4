"""Reconciliation in the ledger's database: the world's side, what it clears, and breaks.

Everything here is made of the topics `clearings` and `ledger-events` and of the books: dropped, it
is made again. So its tables are made where they are missing and are no part of the migrations.
"""
