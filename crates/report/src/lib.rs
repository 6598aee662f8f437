//! Tables from run folders, beside the published numbers.
