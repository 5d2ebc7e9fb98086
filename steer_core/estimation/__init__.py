"""Every estimate of the entropy change against the measured change."""
