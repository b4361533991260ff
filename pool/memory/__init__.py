"""The bytes: regions of memory that the supervisor owns and hands out as file descriptors."""
