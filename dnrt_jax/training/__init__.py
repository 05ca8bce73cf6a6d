"""The training step, a pure function of (state, batch), and its parts."""
