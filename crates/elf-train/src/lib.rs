//! Training: optimisers, schedules, EMA, checkpoints and the loop.
