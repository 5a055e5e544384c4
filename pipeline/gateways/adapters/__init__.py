"""What each gateway documents, from the caller's side: requests, answers and notices.

An adapter knows its gateway's contract and nothing of its inside; it imports nothing of the
simulator, which a contract of import-linter enforces.
"""
