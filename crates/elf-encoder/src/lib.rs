//! Frozen text encoders and latent normalisation.
