//! Trainable networks with named taps, and their weights.
