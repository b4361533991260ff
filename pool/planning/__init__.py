"""What a pool would take, told before anything is loaded."""
