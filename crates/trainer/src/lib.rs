//! Parameter groups, schedules, the loop, checkpoints and experiment plans.
