"""Proof of the books: whole they agree to the last minor unit, and no damage to them goes unseen.

``python -m benchmarks books`` runs the sample and generated orders with faults through the flow,
takes the gateway's settlement reports and the bank's statements in, and asks every check that
there is. Then it damages copies of the books, of the reports and of the gateway's own books, row by
row as a seed draws them, and asks again: every damage has to be found by name at its place, and
nothing else.
"""
