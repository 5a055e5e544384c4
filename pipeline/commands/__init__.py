"""Commands of the paystream program: each parses, calls one function and prints."""
