"""The supervisor process: it owns regions, leases and queues, and carries out what the core decides."""
