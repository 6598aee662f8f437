//! What is counted, one file each: accuracy, agreement, segmentation, calibration, statistics.
