"""The wire formats of the simulated gateways, one module each, seen from the gateway's side."""
