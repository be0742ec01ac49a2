"""FSR, replicated: Feature Separation and Recalibration (Kim et al., CVPR 2023) with baselines, controls and audits."""

__version__ = "0.1.0"
