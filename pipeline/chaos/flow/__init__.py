"""The whole flow on three brokers while everything in it is killed, frozen and restarted."""
