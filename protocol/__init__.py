"""What crosses a process border: messages, frames, values, tensors, errors, states, frozen objects."""
