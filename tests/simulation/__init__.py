"""Whole workers over a simulated log, gateway and clock, stepped in one thread from one seed."""
